"""Everything that is to be shown on a GPU: ``python -m bench.gpu --out FOLDER``.

Rows are run in order of importance. Each result is a line of ``FOLDER/rows.jsonl``, written as soon as it exists, and
marked ``measured`` (in full, on a GPU), ``small`` (tiny sizes, or a CPU) or ``empty`` (with the reason). A row that is
there already is not run again; ``--from`` takes the rows and the compile cache of an earlier call. Nothing is asked of
a network. ``--cpu`` runs every row small on a CPU, to see that it works.
"""

import argparse
import fnmatch
import json
import os
import shutil
import signal
import sys
import tarfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bench.gpu_rows import ROWS
from bench.gpu_setup import Empty, Row, Setup
from esper.bench.record import machine
from esper.runtime.build import find_device
from esper.tezzeret.choose import CHOICES

RESULTS, CACHE = "rows.jsonl", "cache.tar.gz"

VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Environment variables of compilers' caches, and their folders in this one's."""

LEAST, PATIENCE = 20.0, 240.0
"""Seconds that a row may take at the least, whatever is left; and a small one, on a machine that may be busy."""


class OutOfTime(BaseException):
    """A row has taken too long. Not an ``Exception``: compilers catch those and go on."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--from", dest="earlier", type=Path, help="folder of an earlier call: its rows and its cache")
    parser.add_argument("--rows", default="", help="names or patterns with commas between; default: all but train")
    parser.add_argument("--list", action="store_true", help="say what rows there are, and stop")
    parser.add_argument("--device", default="cuda", help="a CUDA device (default cuda)")
    parser.add_argument("--cpu", action="store_true", help="every row small, on a CPU")
    parser.add_argument("--small", action="store_true", help="every row small")
    parser.add_argument("--backend", default="", choices=CHOICES, help="default: auto; eager where rows are small")
    parser.add_argument("--baseline", type=Path, help="checkout of an earlier revision, to measure beside this one")
    parser.add_argument("--cores", type=int, default=2, help="processors of the rows on cores (default 2)")
    parser.add_argument("--budget", type=float, default=285, help="seconds of all rows together (default 285)")
    return parser.parse_args(arguments)


def chosen(pattern: str) -> list[Row]:
    """The rows that are asked for, in the order of the table."""
    patterns = [part for part in pattern.split(",") if part]
    wanted = [row for row in ROWS if any(fnmatch.fnmatch(row.name, each) for each in patterns)]
    missed = [each for each in patterns if not fnmatch.filter([row.name for row in ROWS], each)]
    if missed:
        sys.exit(f"--rows = {','.join(missed)!r}: no such row; --list names them")
    return wanted if patterns else [row for row in ROWS if row.default]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """A block that is ended by ``OutOfTime``."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_row(row: Row, setup: Setup, limit: float) -> dict[str, Any]:
    """One row's line."""
    begun, failed = time.perf_counter(), None
    try:
        with within(PATIENCE if setup.small else max(limit, LEAST)):
            found = row.run(setup)
    except OutOfTime:
        failed = f"out of time after {time.perf_counter() - begun:.0f} s"
    except torch.OutOfMemoryError as error:
        failed = f"out of memory: {str(error).splitlines()[0]}"
    except Empty as error:
        failed = str(error)
    except Exception as error:  # one row's fault must not cost the others
        traceback.print_exc()
        failed = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
    line = {"row": row.name, "about": row.about, "seconds": time.perf_counter() - begun}
    if failed is not None:
        return line | {"mark": "empty", "reason": failed}
    full = setup.device.type == "cuda" and not setup.small
    return line | {"mark": "measured" if full else "small", "figures": found}


def done_before(path: Path, small: bool) -> set[str]:
    """Rows that need not be run again."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    marks = ("measured", "small") if small else ("measured",)
    return {found["row"] for found in map(json.loads, lines) if found["mark"] in marks}


def take_over(earlier: Path, out: Path) -> None:
    """The results and the compile cache of an earlier call."""
    if (earlier / RESULTS).is_file() and not (out / RESULTS).exists():
        shutil.copyfile(earlier / RESULTS, out / RESULTS)
    if (earlier / CACHE).is_file():
        with tarfile.open(earlier / CACHE) as archive:
            archive.extractall(out / "cache", filter="data")


def save_cache(out: Path) -> None:
    """The compile cache as one file, whole or not at all."""
    with tarfile.open(out / f"{CACHE}.part", "w:gz", compresslevel=1) as archive:
        archive.add(out / "cache", arcname=".")
    (out / f"{CACHE}.part").replace(out / CACHE)


def without_tf32() -> dict[str, bool]:
    """Switch reduced precision off, and read it back."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}


def run_all(rows: list[Row], setup: Setup, budget: float) -> int:
    """All rows; the number of those that are empty."""
    facts = machine(setup.device) | {"cuda": torch.version.cuda, "tf32": without_tf32()}
    begun, empty, path = time.perf_counter(), 0, setup.out / RESULTS
    before = done_before(path, setup.small)
    for row in rows:
        left = budget - (time.perf_counter() - begun)
        if row.name in before:
            print(f"{row.name}: there already", flush=True)
            continue
        if row.seconds > left and not setup.small:
            line = {"row": row.name, "mark": "empty", "reason": f"no time: {left:.0f} of {budget:.0f} s are left"}
        else:
            line = run_row(row, setup, left)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"where": facts}) + "\n")
        empty += line["mark"] == "empty"
        print(json.dumps(line), flush=True)
        if setup.device.type == "cuda":
            save_cache(setup.out)
            torch.cuda.empty_cache()
    return empty


def main() -> int:
    """Measure."""
    options = parse()
    if options.list:
        print("\n".join(f"{row.name:24}{row.about}{'' if row.default else ' (if named)'}" for row in ROWS))
        return 0
    rows, out = chosen(options.rows), options.out.resolve()
    for name, folder in VARIABLES.items():
        (out / "cache" / folder).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(out / "cache" / folder)
    if options.earlier is not None:
        take_over(options.earlier, out)
    device = find_device("cpu" if options.cpu else options.device, "--device")
    small = options.cpu or options.small
    backend = options.backend or ("eager" if small else "auto")
    baseline = options.baseline and options.baseline.resolve()
    empty = run_all(rows, Setup(device, small, backend, baseline, options.cores, out), options.budget)
    print(f"{out / RESULTS}: {empty} of {len(rows)} rows are empty")
    return 0


if __name__ == "__main__":
    sys.exit(main())
