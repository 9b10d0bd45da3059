"""``esper blueprint add | requests``: documents for a training run that goes on, and what became of them."""

import argparse
from collections.abc import Sequence
from typing import TextIO

from esper.runtime.requests import ask, pending
from esper.runtime.run_blueprints import read_blueprint, read_record
from esper.tezzeret.blueprints import canonical
from esper.utils.documents import to_json
from esper.utils.paths import user_path
from esper.utils.settings import Parser, boolean, spell


def add(words: Sequence[str], out: TextIO) -> None:
    """Run ``add RUN SOURCE``: hand a document over, and do not wait.

    Raises:
      SettingsError: no such run or document, or the run has it already.
      DocumentError: the document is refused.
    """
    parser = _parser("add", "Hand a document to a training run, which takes it between two rounds.")
    parser.add_argument("run", help="run directory")
    parser.add_argument("source", help="a document's file, or store:ID")
    given = parser.parse_args(words)
    document = read_blueprint(given.source, "add")
    id = ask(user_path(given.run), canonical(document), given.source)
    out.write(f"blueprint {document.name} {id}: asked for; esper blueprint requests {given.run} tells more\n")


def show(words: Sequence[str], out: TextIO) -> None:
    """Run ``requests RUN [--json]``: what the run has from documents, what it refused, and what it has not taken yet.

    Raises:
      CheckpointError: the run's record cannot be read.
    """
    parser = _parser("requests", "What became of the documents of a training run.")
    parser.add_argument("run", help="run directory")
    parser.add_argument("--json", type=boolean, default=False, metavar="true|false", help="one JSON object")
    given = parser.parse_args(spell(words, ("json",), positionals=True))
    run = user_path(given.run)
    entries, waiting = read_record(run), [request.id for request in pending(run)]
    if given.json:
        rows = [entry._asdict() | {"backends": dict(entry.backends)} for entry in entries]
        out.write(to_json({"blueprints": rows, "pending": waiting}) + "\n")
        return
    for entry in entries:
        where = ", ".join(f"{task} on {backend}" for task, backend in entry.backends)
        when = "from the beginning" if entry.round is None else f"after round {entry.round}"
        out.write(f"{entry.id[:12]}  {entry.name}  {when}: {f'refused: {entry.reason}' if entry.reason else where}\n")
    out.write("".join(f"{id[:12]}  pending\n" for id in waiting))


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    return Parser(prog=f"esper blueprint {name}", description=text, allow_abbrev=False)
