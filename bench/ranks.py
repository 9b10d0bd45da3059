"""Two ranks of one thread against one rank of two threads: rounds of training in one run, in turn.

Run from the repository's root on a quiet machine: ``python -m bench.ranks [--task digits] [--envs 64] [--rounds 4]
[--repeats 2]``. Each repeat trains the same run twice under torchrun: one rank of so many threads as there are ranks
otherwise, and so many ranks of one thread. A round's seconds are those of the first rank; the first round, which
compiles, is left out. Efficiency is the time of one rank over that of several: 1 where nothing is lost.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from esper.nissa.sinks import METRICS, read_rows
from esper.utils.settings import read_settings, setting


@dataclass(frozen=True)
class RanksSettings:
    """Ranks of one thread against one rank of as many threads."""

    task: str = setting("digits", "preset")
    envs: int = setting(64, "environments of all ranks together", 2, 65536)
    rounds: int = setting(4, "of a run; the first is left out", 2, 1000)
    repeats: int = setting(2, "of both", 1, 100)
    ranks: int = setting(2, "processes", 2, 64)
    backend: str = setting("auto", "how networks are run")


def seconds(asked: RanksSettings, ranks: int, threads: int, folder: Path) -> dict[str, float]:
    """Medians over rounds of a run's seconds: of a round, of playing and of learning."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    words = ["train", "--task", asked.task, "--num-envs", str(asked.envs), "--rounds", str(asked.rounds)]
    words += ["--eval-envs", "0", "--threads", str(threads), "--backend", asked.backend, "--progress", "off"]
    command = [sys.executable, *launcher, "-m", "esper", *words, "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    rows = read_rows(folder / METRICS)[1:]
    names = ("seconds", "collect_seconds", "learn_seconds")
    return {name: statistics.median(row[name] for row in rows) for name in names}


def main() -> None:
    """Time both in turn, and print lines of JSON."""
    asked = read_settings(RanksSettings, sys.argv[1:], "bench.ranks")
    ways = {"one": (1, asked.ranks), "several": (asked.ranks, 1)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as place:
        for repeat in range(asked.repeats):
            for name, (ranks, threads) in ways.items():
                told = seconds(asked, ranks, threads, Path(place) / f"{name}{repeat}")
                found[name].append(told)
                print(json.dumps({"ranks": ranks, "threads": threads, **told}), flush=True)
    middle = {
        name: {part: statistics.median(run[part] for run in runs) for part in runs[0]} for name, runs in found.items()
    }
    efficiency = {part: round(middle["one"][part] / middle["several"][part], 3) for part in middle["one"]}
    print(json.dumps({"efficiency": efficiency, "envs": asked.envs, "task": asked.task}))


if __name__ == "__main__":
    main()
