"""What a seed in TRAINING costs: counted FLOPs beside processor time, on hosts of two sizes, by backend.

Run from the repository's root: ``python -m bench.seed_cost [--backends native,eager] [--envs E] [--repeat N]``.
Every environment holds one seed in TRAINING in the slot that is named, and an epoch of SGD steps is timed, without
validation. Both are relative to the same hosts without slots: by count (``bench.frontier_flops``: three forward passes
of host and seed; with its own objective two more of what lies behind the slot), and by the median over paired turns of
the processor time of this process, which other processes on the machine disturb little. FLOPs are those of convolutions
and products alone. Where operations are torch's own (``eager``), the bytes that they read and write are counted beside:
norms and activations cost bytes, and hardly any FLOPs. The native library keeps features in the cache, and has none.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import esper
from bench.frontier_flops import host_flops, slots_flops
from esper.engine import Engine
from esper.kasmina.bypass_blueprints import CONV8X2
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import BOTTLENECK, CONV_HEAVY
from esper.kasmina.seeding import Seeds, place_seeds
from esper.kasmina.slot_table import take_table
from esper.leyline.actions import NONE, Blend
from esper.leyline.config import Isolation
from esper.leyline.stages import Stage
from esper.leyline.state import State
from esper.tolaria.digits import digits
from esper.tolaria.training import train_epoch

HOSTS: dict[str, dict[str, Any]] = {
    "cnn 4": {"num_blocks": 1, "base_channels": 4},
    "cnn 8-16-32": {"num_blocks": 3, "base_channels": 8},
}
KINDS = (BOTTLENECK, CONV_HEAVY, CONV8X2)
SLOTS: dict[str, tuple[int | str, ...]] = {"cnn 4": (0, "input:logits"), "cnn 8-16-32": (0, 2, "input:logits")}


class Case(NamedTuple):
    """What every environment holds.

    Attributes:
      words: for people.
      slot: its number; None: no seed.
      kind: the seed's.
      isolation: how it learns.
    """

    words: str
    slot: int | None
    kind: int
    isolation: Isolation


def cases(engine: Engine) -> list[Case]:
    """Slots without a seed, then every seed in every slot that it fits, with both isolations that isolate."""
    found = [Case("slots, no seed", None, NONE, Isolation.OBJECTIVE)]
    for number, slot in enumerate(engine.structure.slots):
        for kind in slot.offers:
            for isolation in (Isolation.OBJECTIVE, Isolation.STRAIGHT_THROUGH):
                place = engine.config.slots[number]
                words = f"{KINDS[kind].name}, {place if slot.is_bypass else f'block{place}'}"
                found.append(Case(words, number, kind, isolation))
    return found


def engine_of(host: str, backend: str, envs: int, slots: tuple[int | str, ...], isolation: Isolation) -> Engine:
    """Hosts on the digits."""
    data = digits()
    network = cnn_host(data.input_shape, data.num_classes, **HOSTS[host])
    task = esper.Task(host, network, KINDS if slots else (), data, {"steps_per_epoch": 16, "slots": slots})
    return esper.make(task, envs, backend=backend, isolation=isolation)


def planted(engine: Engine, case: Case) -> State:
    """A state in which every environment holds the case's seed."""
    state = engine.init(0)
    if case.slot is None:
        return state
    shape = state.slots.stage.shape
    stage, kind = torch.full(shape, int(Stage.DORMANT)), torch.full(shape, NONE)
    stage[:, case.slot], kind[:, case.slot] = int(Stage.TRAINING), case.kind
    return place_seeds(engine.structure, state, Seeds(stage, kind, torch.full(shape, int(Blend.LINEAR)), 0.0 * stage))


def epoch_of(engine: Engine, state: State) -> Callable[[], Any]:
    """Training for an epoch, always from the same state."""
    plan = engine.backend.plan(take_table(state.slots), torch.device("cpu"))
    return partial(train_epoch, engine.config, engine.backend, engine.hypers, state, plan, engine.data)


def counted(engine: Engine, state: State) -> float:
    """FLOPs of training, relative to the host's."""
    return float(slots_flops(engine.structure, state.slots).training[0]) / (3 * host_flops(engine.structure))


class Traffic(TorchDispatchMode):
    """Adds up the bytes that torch's operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it."""
        out = func(*args, **(kwargs or {}))
        if not any(given.alias_info and not given.alias_info.is_write for given in func._schema.returns):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def bytes_moved(run: Callable[[], Any]) -> int:
    """Of torch's operations in one run."""
    with Traffic() as traffic:
        run()
    return traffic.total


def processor_seconds(runs: list[Callable[[], Any]], repeat: int) -> list[list[float]]:
    """Of every run, by turn."""
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(repeat + 1):
        order = range(len(runs)) if turn % 2 else reversed(range(len(runs)))
        for index in order:
            begun = time.process_time()
            runs[index]()
            if turn:  # the first only warms up
                taken[index].append(time.process_time() - begun)
    return taken


def measure(host: str, backend: str, envs: int, repeat: int) -> list[dict[str, Any]]:
    """The rows of a host."""
    bare = engine_of(host, backend, envs, (), Isolation.OBJECTIVE)
    engines = {way: engine_of(host, backend, envs, SLOTS[host], way) for way in Isolation if way is not Isolation.NONE}
    listed = cases(engines[Isolation.OBJECTIVE])
    states = [planted(engines[case.isolation], case) for case in listed]
    runs = [epoch_of(bare, bare.init(0))]
    runs += [epoch_of(engines[case.isolation], state) for case, state in zip(listed, states, strict=True)]
    base, *taken = processor_seconds(runs, repeat)
    of_host, *moved = map(bytes_moved, runs) if backend == "eager" else [0] * len(runs)
    rows = list[dict[str, Any]]()
    for case, state, seconds, own in zip(listed, states, taken, moved, strict=True):
        ratios = sorted(mine / other for mine, other in zip(seconds, base, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        row = {"host": host, "backend": backend, "seed": case.words, "isolation": case.isolation.value}
        row |= {"counted": counted(engines[case.isolation], state), "measured": middle, "quartiles": [low, high]}
        row |= {"bytes": own / of_host if of_host else None, "milliseconds": 1e3 * statistics.median(seconds)}
        rows.append(row)
    return rows


def table(found: dict[str, Any]) -> str:
    """As markdown."""
    lines = [
        "# What a seed in TRAINING costs\n",
        f"An epoch of 16 steps of 64 samples of the digits, E = {found['envs']}, one thread, {found['turns']} turns. "
        f"1 is the same hosts without slots. {found['platform']}, torch {found['torch']}.\n",
        "| host, backend | in every environment | learns by | counted FLOPs | bytes | "
        "processor time | quartiles | ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        learns = "" if row["seed"].startswith("slots") else row["isolation"]
        low, high = row["quartiles"]
        moved = "" if row["bytes"] is None else f"{row['bytes']:.2f}"
        lines.append(
            f"| {row['host']}, {row['backend']} | {row['seed']} | {learns} | {row['counted']:.2f} | {moved} | "
            f"{row['measured']:.2f} | {low:.2f} to {high:.2f} | {row['milliseconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", default="native,eager", help="with commas between")
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=15, help="turns, >= 3")
    parser.add_argument("--out", type=Path, default=Path("runs/seed_cost"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row for b in asked.backends.split(",") for host in HOSTS for row in measure(host, b, asked.envs, asked.repeat)
    ]
    found = {"date": datetime.date.today().isoformat(), "envs": asked.envs, "turns": asked.repeat, "rows": rows}
    found |= {"platform": platform.platform(), "torch": torch.__version__}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "seed_cost.json").write_text(json.dumps(found, indent=1) + "\n")
    (asked.out / "seed_cost.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
