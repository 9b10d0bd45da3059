"""Asked to stop: a flag that signals set and that is looked at where work can be left; and draws from a seed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from esper.engine import Engine
from esper.utils.failpoints import reach

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The process was asked to stop, and everything is in order. No ``except Exception`` takes it for its own.

    Attributes:
      status: exit status of a process that stops for it, by the shells' convention.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@dataclass
class Watch:
    """Whether the process was asked to stop.

    Attributes:
      number: of the signal; None while there was none.
    """

    number: int | None = None

    def check(self) -> None:
        """Stop here if that was asked for.

        Raises:
          Stopped: with the signal.
        """
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def watched() -> Iterator[Watch]:
    """Note SIGINT and SIGTERM while the block runs, for whoever looks at the watch; a second one stops at once.

    A signal that the process ignores stays ignored. Python hands signals to the main thread alone: in another thread
    nothing is noted.
    """
    watch = Watch()

    def note(number: int, frame: object) -> None:
        watch.check()
        watch.number = number

    main = threading.current_thread() is threading.main_thread()
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN] if main else []
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible(engine: Engine, watch: Watch) -> Engine:
    """The same engine, each of whose steps begins with a look at the watch."""
    plan = engine.backend.plan_with

    def look(*arguments: Any) -> Any:
        watch.check()
        reach("step")
        return plan(*arguments)

    return replace(engine, backend=engine.backend._replace(plan_with=look))


def draws_now(device: torch.device | None = None) -> tuple[Tensor, ...]:
    """Where torch's generators stand: the CPU's, and a GPU's if that is the device."""
    others = [torch.cuda.get_rng_state(device)] if device is not None and device.type == "cuda" else []
    return (torch.random.get_rng_state(), *others)


def draws_at(states: tuple[Tensor, ...], device: torch.device | None = None) -> None:
    """Put torch's generators where ``draws_now`` found them."""
    torch.random.set_rng_state(states[0])
    if device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def torch_draws_from(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let torch's global generators, which TorchRL samples actions from, start at ``seed`` within the block.

    Args:
      seed: 0 <= seed < 2**63.
      device: whose generator it is, beside the CPU's.
    """
    others = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=others):
        torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for other in others:
            torch.cuda.set_rng_state(torch.Generator(other).manual_seed(seed).get_state(), other)
        yield
