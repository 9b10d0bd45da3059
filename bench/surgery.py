"""Training with surgery every few epochs beside training without: on hosts that lack nothing, and on a starved one.

Run from the repository's root: ``python -m bench.surgery [--envs 16] [--epochs 30]``. It prints a line per case: the
digits, convolutional hosts of two blocks with batch norm, SGD at the rate named, mean over environments of the test
accuracy at the end with the half-width of its 95 % interval, the same of what the same environments gain over no
operation, and what was done.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import esper
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.leyline.events import Performance
from esper.runtime.operate import operate
from esper.tezzeret.surgery import InsertLayer, Log, ModifyLayer, Operation, RemoveLayer, SurgeryRules
from esper.tolaria.digits import digits
from esper.utils.settings import SettingsError, read_settings, setting

EVERY, CALM = 5, 3
"""Epochs between operations, and at the end without any."""


@dataclass(frozen=True)
class SurgerySettings:
    """What to run."""

    envs: int = setting(16, "initialisations", 2, 65536)
    epochs: int = setting(30, "epochs of 16 steps", 1, 100_000)


class Surgeries(NamedTuple):
    """A case.

    Attributes:
      host: channels of the first block; the second has twice as many.
      rate: of SGD.
      name: of what is done.
      plan: (how often before, the width of each layer) -> an operation; None: none is done.
    """

    host: int
    rate: float
    name: str
    plan: Callable[[int, dict[str, int]], Operation] | None = None


def come_and_go(norm: str) -> Callable[[int, dict[str, int]], Operation]:
    """A layer comes, and at the next time goes."""

    def plan(times: int, widths: dict[str, int]) -> Operation:
        return RemoveLayer("extra") if times % 2 else InsertLayer("extra", "block1.conv", norm=norm)

    return plan


def breathe(times: int, widths: dict[str, int]) -> Operation:
    """A layer becomes half as wide again, and at the next time as it was."""
    return ModifyLayer("block1.conv", width=16 if times % 2 else 24, start="zero")


def widen(start: str) -> Callable[[int, dict[str, int]], Operation]:
    """Layers in turn are doubled."""

    def plan(times: int, widths: dict[str, int]) -> Operation:
        name = ("block0.conv", "block1.conv")[times % 2]
        return ModifyLayer(name, width=2 * widths[name], start=start)

    return plan


LACKING_NOTHING = (
    ("none", None),
    ("a width, to and fro", breathe),
    ("a layer comes and goes", come_and_go("same")),
    ("the same, without a norm", come_and_go("none")),
)
STARVED = (("none", None), *((f"widths doubled, {start}", widen(start)) for start in ("net2net", "zero")))

CASES = (
    *(Surgeries(8, rate, *case) for rate in (0.1, 0.06, 0.03) for case in LACKING_NOTHING),
    *(Surgeries(2, 0.1, *case) for case in STARVED),
)
"""Each behind the one of its host and rate without operations."""


def play(case: Surgeries, envs: int, epochs: int) -> tuple[Performance, Log, int]:
    """Train hosts: how well they do on the test part, what was done, and how many numbers they have."""
    host = cnn_host((1, 8, 8), 10, 2, case.host)
    given = {"slots": (), "host_lr": case.rate, "batch_size": 64, "steps_per_epoch": 16, "horizon": epochs}
    engine = esper.make(esper.Task("surgery", host, CONV_BLUEPRINTS, digits(), given), envs)
    state, log, wait = engine.init(0), Log(), torch.zeros(envs, dtype=torch.int64)
    rules = SurgeryRules(topology=True, cooldown_epochs=EVERY)
    for epoch in range(epochs):
        if case.plan is not None and epoch and epoch % EVERY == 0 and epoch < epochs - CALM:
            convs = [param for block in engine.structure.host.blocks for param in block.params if len(param.shape) == 4]
            widths = {f"block{number}.conv": param.shape[0] for number, param in enumerate(convs[:2])}
            engine, state, report = operate(engine, state, case.plan(len(log.reports), widths), rules, log)
            log = log.with_report(report)
        state, _ = engine.step(state, wait)
    return engine.test(state), log, engine.structure.host.num_params


def main(words: list[str]) -> None:
    """Play all cases."""
    try:
        settings = read_settings(SurgerySettings, words, "bench.surgery")
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    without = torch.zeros(settings.envs)
    for case in CASES:
        found, log, params = play(case, settings.envs, settings.epochs)
        without = found.accuracy if case.plan is None else without
        print(
            f"cnn {case.host}-{2 * case.host}, rate {case.rate:g}, {case.name:24}: test {_interval(found.accuracy)} %, "
            f"gained {_interval(found.accuracy - without)}, {params:,} parameters; {log.counters}",
            flush=True,
        )


def _interval(values: Tensor) -> str:
    """The mean, and the half-width of its 95 % interval."""
    return f"{float(values.mean()):.1f} ± {1.96 * float(values.std()) / len(values) ** 0.5:.1f}"


if __name__ == "__main__":
    main(sys.argv[1:])
