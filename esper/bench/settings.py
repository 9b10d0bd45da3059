"""What was asked for on the command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from esper.bench.case import Bench, Case
from esper.leyline.config import Precision
from esper.runtime.build import find_device
from esper.runtime.tasks import TASKS
from esper.tezzeret.choose import CHOICES
from esper.utils.paths import user_path
from esper.utils.settings import Parser, SettingsError, boolean, spell

MOST_ENVS = 1 << 20
REPEAT, QUICK_REPEAT = 21, 3
ENVS, QUICK_ENVS = "64", "2"

THROUGHPUT = "throughput"
"""The action without any word."""

ALONE = (
    "steps a second by the number of environments, as a table and a chart, within a minute (what runs without a word)"
)

CHART = "esper-throughput.svg"


@dataclass(frozen=True)
class Asked:
    """One command.

    Attributes:
      action: throughput, list, run or compare.
      cases: patterns of names; none = all.
      files: two files to compare.
      envs: numbers of environments.
      device, dtype, backend, repeat, task, quick, probe: of the run.
      json, chart: where results, and a picture of the throughput, go, if anywhere.
    """

    action: str
    cases: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    envs: tuple[int, ...] = (64,)
    device: str = "cpu"
    dtype: str = Precision.FLOAT32.value
    backend: str = "auto"
    repeat: int = REPEAT
    task: str = "digits_v1"
    quick: bool = False
    probe: bool = True
    json: Path | None = None
    chart: Path | None = None

    def bench(self) -> Bench:
        """What the cases share.

        Raises:
          SettingsError: the device is not there.
        """
        return Bench(TASKS[self.task](), _device(self.device), Precision(self.dtype), self.backend, self.quick)


def read_arguments(words: Sequence[str]) -> Asked:
    """Words after ``python -m esper.bench``.

    Raises:
      SettingsError: one line.
      SystemExit: ``--help``.
    """
    words = list(words)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = [THROUGHPUT, *words]
    given = vars(_parser().parse_args(spell(words, ("quick", "probe"), positionals=True)))
    quick = given.get("quick", False)
    if given["action"] == THROUGHPUT:
        given["quick"] = False
    elif "envs" in given:
        given["envs"] = _counts(given["envs"] or (QUICK_ENVS if quick else ENVS))
        repeat = given["repeat"]
        given["repeat"] = (QUICK_REPEAT if quick else REPEAT) if repeat is None else _count("--repeat", repeat, 10**6)
        given["probe"] = not quick if given["probe"] is None else given["probe"]
    for name in ("json", "chart"):
        if given.get(name) is not None:
            given[name] = _writable(f"--{name}", user_path(given[name]))
    for name in ("cases", "files"):
        if name in given:
            given[name] = tuple(user_path(word) if name == "files" else word for word in given[name])
    return Asked(**given)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="esper.bench", description="Measure what Esper costs.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="throughput | list | run | compare")
    alone = actions.add_parser(THROUGHPUT, help=ALONE, description=ALONE, allow_abbrev=False)
    alone.add_argument("--task", choices=tuple(TASKS), default="digits_v1", help="preset (default: digits_v1)")
    _add_places(alone)
    alone.add_argument("--chart", metavar="FILE.svg", default=CHART, help=f"where the picture goes (default: {CHART})")
    for name, text in (("list", "name the cases and their units of work"), ("run", "check and time cases")):
        each = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        each.add_argument("--task", choices=tuple(TASKS), default="digits_v1", help="preset (default: digits_v1)")
        if name == "run":
            _add_run_flags(each)
    text = (
        "two files of run --json, old and new: counts exactly, ratios within a run to 5 %; exit status 1 if one is red"
    )
    both = actions.add_parser("compare", help=text, description=text, allow_abbrev=False)
    both.add_argument("files", nargs=2, metavar="FILE.json")
    return parser


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("cases", nargs="*", metavar="CASE", help="names, or patterns such as 'env-step-*'; none = all")
    flag("--envs", metavar="1,16,64", help=f"numbers of environments (default: {ENVS})")
    _add_places(parser)
    flag("--repeat", metavar="N", help=f"timings of each case, in turn (default: {REPEAT})")
    flag(
        "--quick",
        type=boolean,
        default=False,
        metavar="true|false",
        help="tiny sizes: whether a case works, not what it costs",
    )
    flag(
        "--probe",
        type=boolean,
        metavar="true|false",
        help="fresh processes for first repeats and memory (default: not with --quick)",
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Where and how networks are run, and where the results go."""
    flag = parser.add_argument
    flag("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    flag(
        "--dtype",
        choices=[p.value for p in Precision if not p.is_mixed],
        default=Precision.FLOAT32.value,
        help="default: float32",
    )
    flag("--backend", choices=CHOICES, default="auto", help="how networks are run (default: auto)")
    flag("--json", metavar="FILE", help="write everything there")


def _count(place: str, word: str, most: int) -> int:
    if not (word.isascii() and word.isdigit() and 1 <= int(word) <= most):
        raise SettingsError(f"{place} = {word!r}: expected an integer from 1 to {most}")
    return int(word)


def _counts(words: str) -> tuple[int, ...]:
    parts = [_count("--envs", word.strip(), MOST_ENVS) for word in words.split(",")]
    if len(set(parts)) != len(parts):
        raise SettingsError(f"--envs = {words!r}: expected distinct numbers")
    return tuple(parts)


def _writable(flag: str, path: Path) -> Path:
    """Known before anything is measured: a run is too long to lose its file at the end."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise SettingsError(f"{flag} = {str(path)!r}: expected a file in a folder that exists")
    return path


def _device(word: str) -> torch.device:
    if word.partition(":")[0] not in ("cpu", "cuda"):
        raise SettingsError(f"--device = {word!r}: expected cpu, cuda or cuda:N")
    return find_device(word, "--device")


def choose(table: dict[str, Case], patterns: Sequence[str]) -> list[Case]:
    """The cases that the patterns name, in the table's order; none = all.

    Raises:
      SettingsError: a pattern names no case.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in table):
            near = get_close_matches(pattern, table, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(table)}"
            raise SettingsError(f"case {pattern!r}: unknown; {hint}")
    wanted = patterns or ("*",)
    return [case for name, case in table.items() if any(fnmatchcase(name, pattern) for pattern in wanted)]
