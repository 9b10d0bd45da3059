"""Esper beside the same work done otherwise: ``python -m bench.rivals --cores 0,1``.

For every case all contenders are started, each in its own process. First the gate: whoever does not do the same work
is left out. Then the contenders take turns, one environment step each, while the others are idle. The result is
written as a table and as numbers to ``bench/results``.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench import report
from bench.contender import CONTENDERS, option
from bench.draw import SHAPES, WorkloadConfig, build_engine, draw_state, export
from bench.gate import Comparison, Trajectory, compare
from bench.served import ROOT, Served
from bench.workload import Array, Workload, flops, save
from esper.bench.measure import seconds_of
from esper.bench.record import machine

WARN_LOAD = 0.2
"""Load average per measured processor above which the machine is not idle."""


class MeasureConfig(NamedTuple):
    """How to measure.

    Attributes:
      names: contenders; the first is the reference of the gate.
      cores: processors, one thread each.
      repeats: environment steps per contender.
      budget: seconds after which a slow contender drops out of further rounds (three it takes at least).
      options: variants, by contender.
    """

    names: tuple[str, ...]
    cores: list[int]
    repeats: int
    budget: float
    options: dict[str, dict[str, Any]]


def say(text: str) -> None:
    """Progress, to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def draw_workload(config: WorkloadConfig) -> Workload:
    """A drawn workload as numbers."""
    engine = build_engine(config, "eager")
    return export(engine, draw_state(engine, config), config)


def start_all(how: MeasureConfig, path: Path, folder: Path) -> tuple[dict[str, Served], dict[str, Any], dict[str, str]]:
    """Start one after the other, so that nobody's compilation disturbs another's."""
    running, starts, failures = {}, {}, {}
    for name in how.names:
        served = Served(name, path, how.cores, how.options.get(name, {}), folder / f"inductor-{name}")
        try:
            starts[name] = served.receive()
            running[name] = served
            say(f"  {name}: {starts[name]['first_seconds']:.1f} s to the end of the first step")
        except RuntimeError as error:
            failures[name] = str(error)
            say(f"  {error}")
    return running, starts, failures


def trajectory(served: Served, epochs: int) -> Trajectory:
    """Pass through all epochs."""
    served.ask(do="reset")
    losses = [np.array(served.ask(do="train", epoch=epoch)["losses"]) for epoch in range(epochs)]
    scores = served.ask(do="validate")
    table = np.column_stack((np.array(scores["accuracy"]), np.array(scores["effect"])))
    return Trajectory(np.concatenate(losses), table, np.array(served.ask(do="norms")["norms"]))


def timed_path_agrees(served: Served, losses: Array, steps: int) -> bool:
    """Whether what is timed is what passed the gate: the mean loss of the first epoch."""
    served.ask(do="reset")
    mean = np.array(served.ask(do="step")["mean_loss"])
    return bool(np.allclose(mean, losses[:steps].mean(0), rtol=1e-5, atol=0))


def pass_gate(running: dict[str, Served], workload: Workload) -> dict[str, Comparison]:
    """Compare everyone with the first."""
    verdicts, reference = {}, None
    for name, served in running.items():
        mine = trajectory(served, len(workload.indices))
        reference = reference or mine
        verdict = compare(workload.structure.precision, mine, reference)
        verdict = verdict._replace(green=verdict.green and timed_path_agrees(served, mine.losses, workload.steps))
        verdicts[name] = verdict
        say(f"  {name}: {verdict}")
    return verdicts


def product_rate() -> float:
    """Operations per second of a product of two 2048 x 2048 matrices, the best of three."""
    square = torch.ones(2048, 2048)
    return 2 * 2048**3 / min(seconds_of(lambda: square @ square, torch.device("cpu")) for _ in range(3))


def take_turns(how: MeasureConfig, running: dict[str, Served]) -> tuple[dict[str, list[float]], list[float]]:
    """Environment steps in turn, the order reversed every other round; and the rate of a matrix product between."""
    seconds: dict[str, list[float]] = {name: [] for name in running}
    rates = []
    for turn in range(how.repeats):
        names = [n for n in running if len(seconds[n]) < 3 or sum(seconds[n]) < how.budget]
        for name in names if turn % 2 == 0 else reversed(names):
            running[name].ask(do="reset")
            seconds[name].append(running[name].ask(do="step")["seconds"])
        rates.append(product_rate())
    return seconds, rates


def who_renders(shape: str, how: MeasureConfig) -> tuple[MeasureConfig, tuple[str, ...]]:
    """The measurement without contenders that cannot do a shape's work, and who they are."""
    able = tuple(name for name in how.names if CONTENDERS[name].renders(shape))
    return how._replace(names=able), tuple(name for name in how.names if name not in able)


def measure(config: WorkloadConfig, how: MeasureConfig) -> dict[str, Any]:
    """Everything about one workload, as ``report`` reads it."""
    how, left_out = who_renders(config.shape, how)
    if left_out:
        say(f"{config.shape}: left out, as they do not render it: {', '.join(left_out)}")
    workload = draw_workload(config)
    say(
        f"{config.shape}: {config.num_envs} environments, {(workload.kind >= 0).sum()} active seeds, {config.precision}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(workload, folder / "workload.npz")
        running, starts, failures = start_all(how, folder / "workload.npz", folder)
        verdicts = pass_gate(running, workload)
        green = {each: served for each, served in running.items() if verdicts[each].green}
        seconds, rates = take_turns(how, green)
        for each, served in running.items():
            starts[each] |= served.ask(do="usage")
            served.close()
    return {
        "deal": config,
        "flops": flops(workload),
        "steps": workload.steps,
        "batch": workload.indices.shape[3],
        "validation": len(workload.val_targets),
        "starts": starts,
        "verdicts": verdicts,
        "seconds": seconds,
        "rates": rates,
        "failures": failures,
        "left_out": left_out,
    }


CASES: dict[str, dict[str, Any]] = {shape: {"shape": shape, "active": 0.5} for shape in SHAPES}
CASES |= {f"{shape}-hosts": {"shape": shape, "active": 0.0} for shape in ("digits", "cifar")}
"""What can be measured: a shape with half of its slots active, or convolutional hosts alone."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", default="0,1", help="processors, one thread each (default 0,1)")
    parser.add_argument("--cases", default=",".join(CASES), help="default: all")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="default: all; the first is the reference")
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9, help="environment steps of each contender (default 9)")
    parser.add_argument("--budget", type=float, default=120, help="seconds of steps after which a slow one drops out")
    parser.add_argument("--shared", action="store_true", help="all environments see the same minibatches")
    parser.add_argument("--check", action="store_true", help="the gate alone, in float64 with 8 environments")
    parser.add_argument("--set", action="append", default=[], metavar="NAME:OPTION=VALUE", help="another variant")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="where the results go")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure; 0 if every gate is green."""
    options = parse()
    variants: dict[str, dict[str, Any]] = {}
    for text in options.set:
        name, rest = text.split(":", 1)
        variants.setdefault(name, {}).update([option(rest)])
    cores = [int(core) for core in options.cores.split(",")]
    repeats = 0 if options.check else options.repeats
    how = MeasureConfig(tuple(options.contenders.split(",")), cores, repeats, options.budget, variants)
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    facts = machine(torch.device("cpu"))
    if facts["load"] > WARN_LOAD * len(cores):
        say(f"load average {facts['load']}: the machine is not idle; take no time from this run")
    cases = []
    for name in options.cases.split(","):
        width, precision = (8, "float64") if options.check else (options.envs, "float32")
        cases.append(
            measure(WorkloadConfig(num_envs=width, precision=precision, shared=options.shared, **CASES[name]), how)
        )
    if not options.check:
        paths = report.write(options.out, facts, cases)
        print(paths[0].read_text(), end="")
        say(f"written: {', '.join(map(str, paths))}")
    red = [(case["deal"].shape, name) for case in cases for name, v in case["verdicts"].items() if not v.green]
    red += [(case["deal"].shape, name) for case in cases for name in case["failures"]]
    print(f"gate: {'red: ' + str(red) if red else 'green for all'}")
    return 1 if red else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
