"""The case of many at once on one machine: two trainings, a worker and a client of its store.

Each is a process of its own (``esper.bench.load``), with the files and locks of the real one. First each works alone
while the others wait, then all at once; what is reported is each one's rate either way. The two trainings have the same
seed: whatever disturbs them, their rounds must have the same bits.
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from esper.bench.case import QUICK, SEED, Bench, Case, Trial
from esper.bench.fresh import ProbeError
from esper.nissa.sinks import METRICS, read_rows
from esper.runtime.worker_pool import Answer, ProcessWorker
from esper.urza.store import BlueprintStatus, StoreSettings, open_store, verify

SECONDS, QUICK_SECONDS = 5.0, 0.4
"""For which each works alone, and all of them at once."""

TRAININGS = ("training 1", "training 2")
PARTS = (*TRAININGS, "worker", "client")
STORE = "store"

ENDLESS = 10**6
"""Rounds that a training is told to play."""

BITS = ("round", "environments_hash", "learner_hash", "return")
"""What two rounds of equal runs have in common."""


class SideBySide(NamedTuple):
    """Processes that wait for their turn.

    Attributes:
      folder: with the runs' directories and the store.
      processes: by part.
      seconds: of a turn.
      measured: of each part, rates alone and beside the others, repeat by repeat.
    """

    folder: Path
    processes: dict[str, ProcessWorker]
    seconds: float
    measured: dict[str, list[list[float]]]

    def turn(self, parts: Sequence[str], seconds: float) -> list[Answer]:
        """Let some work at once.

        Raises:
          ProbeError: one has failed; its part and its last words.
        """
        with ThreadPoolExecutor(len(parts)) as threads:
            try:
                found = list(threads.map(lambda part: self.processes[part].ask({"seconds": seconds}), parts))
            except EOFError as error:
                raise ProbeError(f"side by side: {error}; expected all to go on") from None
        for part, answer in zip(parts, found, strict=True):
            if answer["wrong"]:
                raise ProbeError(f"side by side: {part}: {answer['wrong']}; expected it to go on")
        return found

    def run(self) -> dict[str, list[float]]:
        """Each alone, then all at once.

        Returns:
          units a second of every part, alone and beside the others.
        """
        alone = [self.turn([part], self.seconds)[0] for part in PARTS]
        together = self.turn(PARTS, self.seconds)
        rates = {
            part: [answer["units"] / answer["seconds"] for answer in pair]
            for part, *pair in zip(PARTS, alone, together, strict=True)
        }
        for part, pair in rates.items():
            self.measured.setdefault(part, []).append(pair)
        return rates


def _prepare(bench: Bench, envs: int) -> Trial:
    """Start all, and wait until each is ready."""
    engine = bench.engine(envs)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="esper-bench-")))
        threads, processes = torch.get_num_threads(), dict[str, ProcessWorker]()
        for part, hello in _hellos(bench, envs, folder).items():
            processes[part] = ProcessWorker("esper.bench.load", hello, threads if part in TRAININGS else 1)
            stack.callback(processes[part].close)
        seconds = QUICK_SECONDS if bench.quick else SECONDS
        many = SideBySide(folder, processes, seconds, {})
        many.turn(PARTS, 0.0)
        close = stack.pop_all().close
    return Trial(many.run, engine, engine.init(SEED), many, close, lambda: many.measured)


def _hellos(bench: Bench, envs: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What the processes are told first."""
    settings: dict[str, Any] = {
        "task": bench.task.name,
        "num_envs": max(2, envs),
        "minibatches": min(4, max(2, envs)),
        "precision": bench.precision.value,
        "seed": SEED,
        "rounds": ENDLESS,
        "eval_envs": 0,
        "progress": "off",
        "backend": bench.backend,
        "device": str(bench.device),
        "engine": {name: value for name, value in QUICK.items() if name != "horizon"} if bench.quick else {},
        "horizon": QUICK["horizon"] if bench.quick else 0,
    }
    common = {"kind": "training", "threads": torch.get_num_threads()}
    found = {part: common | {"settings": settings | {"out": str(folder / part)}} for part in TRAININGS}
    store = {"store": str(folder / STORE), "child": not bench.quick}
    return found | {"worker": {"kind": "worker", **store}, "client": {"kind": "client", **store}}


def _gate(trial: Trial) -> str | None:
    """All of them worked, alone and at once, and what they left is as it must be."""
    rates = trial.run()
    idle = [f"{part}, {how}" for part, pair in rates.items() for how, rate in zip(HOW, pair, strict=True) if not rate]
    if idle:
        return f"{idle[0]}, did nothing in {trial.extra.seconds:g} s; expected work"
    return runs_wrong([trial.extra.folder / part for part in TRAININGS]) or store_wrong(trial.extra.folder / STORE)


HOW = ("alone", "beside the others")


def runs_wrong(folders: Sequence[Path]) -> str | None:
    """What is wrong with runs of one seed, which must agree on all rounds that both have, if anything."""
    runs = [read_rows(folder / METRICS) for folder in folders]
    for rows in zip(*runs, strict=False):
        first, second = ([row[name] for name in BITS] for row in rows)
        if first != second:
            return f"round {rows[0]['round']} of two trainings of one seed differs; expected the same bits"
    numbers = [[row["round"] for row in rows] for rows in runs]
    if any(found != list(range(1, len(found) + 1)) or not found for found in numbers):
        return f"a training's rounds are {numbers[0][:5]}, {numbers[1][:5]}; expected 1, 2, and on"
    return None


def store_wrong(folder: Path) -> str | None:
    """What is wrong with the store, if anything: damage, or a request that is not characterized."""
    with open_store(StoreSettings(folder=str(folder))) as store:
        damage = next(verify(store), None)
        if damage is not None:
            return f"the store: {damage.id}: {damage.detail}"
        counts = store.queue.counters()
    others = {name: count for name, count in counts.items() if count and name != BlueprintStatus.CHARACTERIZED.value}
    return f"requests of the store are {others}; expected all characterized" if others else None


CASE = Case(
    "side-by-side",
    "two trainings, a worker and a client of its store: each alone, then all at once",
    _prepare,
    _gate,
    most=1,
    counted=0,
    probed=False,
)
