"""Asked to stop: signals as an exception, held back where something must be done whole; and draws from a seed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch


class Stopped(BaseException):
    """The process was asked to stop; the signal's name. No library's ``except Exception`` takes it for its own."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into ``Stopped`` while the block runs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block is done, so that a round is recorded whole or not at all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def torch_draws_from(seed: int) -> Iterator[None]:
    """Let torch's global generator, which TorchRL samples actions from, start at ``seed`` within the block."""
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        yield
