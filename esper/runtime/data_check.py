"""``esper data check PATH``: what a dataset's folder or file holds, and whether it loads; ``esper data report DIR``:
what recorded episodes hold.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from esper.leyline.config import ConfigError
from esper.runtime.build import make
from esper.runtime.episodes_check import check_episodes, report_episodes
from esper.runtime.tasks import COUNTED, named
from esper.simic.episodes.manifest import MANIFEST
from esper.tolaria.data import DatasetError
from esper.tolaria.formats.detect import DatasetReport, PartReport, check, detect
from esper.tolaria.formats.files import Listed, as_path, listing
from esper.utils.documents import figure, to_json
from esper.utils.paths import user_path
from esper.utils.settings import Parser, boolean, spell
from esper.utils.terminal import output

REPLAYS = 3
"""Recorded episodes that a check plays again."""

MAX_CLASSES_SHOWN = 26
"""With more classes, the counts are summed up in a line."""


def data_check(arguments: Sequence[str], out: TextIO | None = None) -> int:
    """Run ``check PATH [--classes N] [--json]``: list the files, load the dataset as training would, report it. Of a
    directory of recorded episodes, verify them (``--replay N`` of them are played again), or ``report`` on them.

    Args:
      arguments: words after ``esper data``.
      out: where the report goes: lines, or one JSON object with ``path``, ``files``, ``format``, ``ok``, ``error``
        and ``report`` (the fields of ``DatasetReport``, or null).

    Returns:
      exit status: 0; 1 where a report on episodes names errors.

    Raises:
      SettingsError: the words are not as above.
      DatasetError: the dataset does not load. What was found is reported before.
      EpisodesError: recorded episodes are not what was written.
      SystemExit: ``--help``.
    """
    out = output(out)
    given = _parse(arguments)
    recorded = user_path(given.path)
    if given.action == "report":
        return report_episodes(recorded, given.json, out)
    if (recorded / MANIFEST).is_file():
        check_episodes(recorded, given.replay, given.json, out)
        return 0
    facts: dict[str, Any] = {"path": given.path, "files": [], "format": None}
    try:
        path = as_path(given.path)
        files = listing(path)
        facts["files"] = [entry._asdict() for entry in files]
        if not given.json:
            _write(out, _show_files(path, files))
        facts["format"] = detect(path).name
        report = check(path, given.classes)
        _build(report.format, given.path, given.classes)
    except DatasetError as error:
        if given.json:
            _write(out, [to_json({**facts, "ok": False, "error": str(error), "report": None})])
        raise
    if given.json:
        _write(out, [to_json({**facts, "ok": True, "error": None, "report": asdict(report)})])
    else:
        _write(out, [*_show_report(report), "ok"])
    return 0


def _build(kind: str, path: str, classes: int | None) -> None:
    """Make the engine that training would make of a dataset, so that both accept the same.

    Raises:
      DatasetError: it cannot be made.
    """
    name = f"{kind}:{path}" + (f"#classes={classes}" if classes is not None and kind in COUNTED else "")
    try:
        make(named(name), 1, backend="eager")
    except ConfigError as error:
        raise DatasetError(str(error)) from None


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="esper data", description="Say what a dataset holds and whether it loads.", allow_abbrev=False)
    parser.add_argument("action", choices=("check", "report"))
    kinds = "folder of a cifar10 or idx dataset, .npz file, UTF-8 text, or recorded episodes (report: these alone)"
    parser.add_argument("path", help=kinds)
    text = f"recorded episodes that are played again to compare (default {REPLAYS})"
    parser.add_argument("--replay", type=int, default=REPLAYS, metavar="N", help=text)
    text = "number of classes (default: 10 for cifar10 and idx; of npz, its num_classes or the largest target + 1)"
    parser.add_argument("--classes", type=int, metavar="N", help=text)
    parser.add_argument("--json", type=boolean, default=False, metavar="true|false", help="print one JSON object")
    return parser.parse_args(spell(arguments, ("json",), positionals=True))


def _write(out: TextIO, lines: Sequence[str]) -> None:
    """Write lines; what UTF-8 cannot say (an undecodable file name) is escaped."""
    out.writelines(line.encode("utf-8", "backslashreplace").decode("utf-8") + "\n" for line in lines)


def _show_files(path: Path, files: tuple[Listed, ...]) -> list[str]:
    width = max((len(entry.name) for entry in files), default=0)
    return [str(path), *(f"  {entry.name:<{width}}  {entry.size:>13,} bytes" for entry in files)]


def _show_report(report: DatasetReport) -> list[str]:
    lines = [f"format {report.format}, read: {', '.join(report.used)}"]
    lines += [f"split       {report.split}"] if report.split else []
    for part in report.parts:
        shape = "x".join(map(str, part.shape))
        unit = f"records of {part.dtype} {shape}" if part.counts else f"characters, {report.num_classes} different"
        values = (
            f"values {figure(part.low)} to {figure(part.high)}"
            if part.counts
            else f"U+{part.low:04X} to U+{part.high:04X}"
        )
        lines.append(f"{part.name:<10}  {part.records:,} {unit}, {values}")
        if part.counts:
            lines.append(f"{'':<10}  {report.num_classes} classes: {_show_counts(report, part)}")
    return lines


def _show_counts(report: DatasetReport, part: PartReport) -> str:
    """Targets of each class, or of how many classes there are how many."""
    if report.num_classes > MAX_CLASSES_SHOWN:
        absent = sum(count == 0 for count in part.counts)
        return f"{min(part.counts):,} to {max(part.counts):,} of each, {absent} absent"
    names = report.class_names or tuple(map(str, range(report.num_classes)))
    return ", ".join(f"{name} {count:,}" for name, count in zip(names, part.counts, strict=True))
