"""``esper blueprint compile FILE``: a document's seven stages with their times, and the id of what was stored."""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, TextIO

from esper.leyline.config import ConfigError
from esper.runtime.blueprint_source import read_source
from esper.tezzeret.stages import (
    BACKENDS,
    DTYPES,
    CompileJob,
    CompilerChild,
    Confines,
    StageReport,
    compile_document,
    enqueue,
)
from esper.tezzeret.stages.reports import as_table
from esper.urza.store import StoreSettings, open_store
from esper.utils.documents import to_json
from esper.utils.settings import Parser, boolean, spell
from esper.utils.terminal import output

FAILED = 1
"""Exit status where a stage did not pass."""


def compile_words(arguments: Sequence[str], out: TextIO | None = None) -> int:
    """Run ``compile FILE [--site ...] [--backend ...] [--dtype ...] [--store FOLDER] [--trusted] [--later] [--json]``.

    Args:
      arguments: words after ``esper blueprint compile``.
      out: where lines, or one JSON object, go.

    Returns:
      0, or ``FAILED``.

    Raises:
      SettingsError, ConfigError: the words are not as above, or there is no such file.
      StoreError: the store cannot be opened or written.
      SystemExit: ``--help``.
    """
    out, given = output(out), _parse(arguments)
    request = CompileJob(*read_source(given.file), given.site, given.dtype, given.backend)
    request.check()

    def tell(report: StageReport) -> None:
        if not given.json:
            out.write(report.line + "\n")
            out.flush()

    confines = Confines(given.seconds, given.memory << 20)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(StoreSettings(folder=given.store) if given.store else None))
        if given.later:
            out.write(f"{enqueue(store, request)}\n")
            return 0
        child = None if given.trusted else stack.enter_context(CompilerChild(confines))
        id, reports = compile_document(request, store, child, tell)
    if given.json:
        out.write(to_json({"id": id, "stages": as_table(reports)}) + "\n")
    return 0 if id is not None else FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    text = "Take a blueprint document through the seven stages, and store what comes of it."
    parser = Parser(prog="esper blueprint compile", description=text, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE", help="a document, or the name of one that is shipped")
    parser.add_argument(
        "--site", default="", help="such as conv:8x8x8 or conv:1x8x8->logits:10; default: one that fits"
    )
    parser.add_argument("--backend", default="auto", choices=BACKENDS)
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--store", default="", metavar="FOLDER", help="default: the store of the environment")
    parser.add_argument("--seconds", type=float, default=Confines().seconds, help="for the child, at most")
    parser.add_argument("--memory", type=int, default=Confines().memory >> 20, help="megabytes for the child, at most")
    trusted = "compile in this process: for documents of your own"
    parser.add_argument("--trusted", type=boolean, default=False, metavar="true|false", help=trusted)
    later = "put it into the queue of a worker, and print the request's id"
    parser.add_argument("--later", type=boolean, default=False, metavar="true|false", help=later)
    parser.add_argument("--json", type=boolean, default=False, metavar="true|false", help="one JSON object")
    found: Any = parser.parse_args(spell(arguments, ("trusted", "later", "json"), positionals=True))
    if not 0 < found.seconds < 1e6 or not 0 < found.memory < 1 << 24:
        raise ConfigError("--seconds, --memory: expected numbers above 0")
    return found
