"""``esper dlq ls | retry | drop``: the dead letters of runs, why they are there, and their second chance."""

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TextIO

from esper.nissa.failures import FailureRecord, describe, group
from esper.runtime.outlets import repeat
from esper.urza.dead_letters import FILE, DeadLetterError, DeadLetters, Letter, LetterState
from esper.utils.documents import cause, to_json
from esper.utils.paths import user_path
from esper.utils.settings import Parser, SettingsError, boolean, spell
from esper.utils.terminal import output

RUNS = "runs"
"""Where runs are that have no other place."""


def dead_letters(arguments: Sequence[str], out: TextIO | None = None) -> None:
    """Run ``ls | retry | drop [DIRECTORY] [--letter N] [--all] [--json]``.

    Args:
      arguments: words after ``esper dlq``.
      out: where lines, or one JSON object, go.

    Raises:
      SettingsError: the words are not as above, or there is no such letter.
      DeadLetterError: a queue cannot be read, or a letter failed again.
      SystemExit: ``--help``.
    """
    out, given = output(out), _parse(arguments)
    with ExitStack() as stack:
        queues = [stack.enter_context(closing(DeadLetters(path))) for path in _files(user_path(given.directory))]
        if given.action == "ls":
            text = to_json(_facts(queues)) + "\n" if given.json else "".join(f"{line}\n" for line in _list(queues))
            out.write(text)
        else:
            _end(given, queues, out)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="esper dlq", description="Writes of runs that failed and can be repeated.", allow_abbrev=False)
    parser.add_argument("action", choices=("ls", "retry", "drop"))
    text = f"a run directory, or one that holds some (default: {RUNS})"
    parser.add_argument("directory", nargs="?", default=RUNS, help=text)
    parser.add_argument("--letter", type=int, metavar="N", help="this one only; the directory is that of its run")
    parser.add_argument("--all", type=boolean, default=False, metavar="true|false", help="of drop: all that wait")
    parser.add_argument("--json", type=boolean, default=False, metavar="true|false", help="of ls: one JSON object")
    given = parser.parse_args(spell(arguments, ("json", "all"), positionals=True))
    if given.action == "drop" and (given.letter is None) == (not given.all):
        raise SettingsError("drop: expected either --letter N or --all")
    return given


def _files(folder: Path) -> list[Path]:
    """Queues of a directory and of those in it."""
    return sorted({*folder.glob(FILE), *folder.glob(f"*/{FILE}")})


def _record(letter: Letter) -> FailureRecord:
    return FailureRecord(letter.cause, letter.reason, f"{letter.operation} {letter.target}", letter.attempts)


def _facts(queues: Sequence[DeadLetters]) -> list[dict[str, object]]:
    return [
        {
            "queue": str(queue.path),
            "waiting": [letter._asdict() for letter in queue.waiting()],
            **{state.value: count for state, count in queue.ended().items()},
        }
        for queue in queues
    ]


def _list(queues: Sequence[DeadLetters]) -> list[str]:
    lines, records = list[str](), list[FailureRecord]()
    for queue in queues:
        waiting, ended = queue.waiting(), queue.ended()
        done, dropped = ended[LetterState.DONE], ended[LetterState.DROPPED]
        lines.append(f"{queue.path.parent}: {len(waiting)} waiting, {done} done, {dropped} dropped")
        lines += [f"  {_shown(letter)}" for letter in waiting]
        records += map(_record, waiting)
    return [*lines, *describe(group(records))] or ["no dead letters"]


def _shown(letter: Letter) -> str:
    first, last = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) for when in (letter.first, letter.last))
    since = first if letter.attempts == 1 else f"{letter.attempts} times, {first} to {last}"
    return f"{letter.number}  {letter.operation} {letter.target}  failed {since}"


def _end(given: argparse.Namespace, queues: Sequence[DeadLetters], out: TextIO) -> None:
    """Retry or drop what was asked for."""
    chosen = [(queue, each) for queue in queues for each in queue.waiting() if given.letter in (None, each.number)]
    if given.letter is not None and len(chosen) != 1:
        raise SettingsError(f"--letter {given.letter}: {len(chosen)} wait in {given.directory}; expected one")
    failed = 0
    for queue, letter in chosen:
        place = f"{queue.path.parent}: {letter.number}  {letter.operation} {letter.target}"
        if given.action == "drop":
            queue.end(letter.number, LetterState.DROPPED)
            out.write(f"{place}: dropped\n")
        elif (error := _try(queue, letter)) is None:
            out.write(f"{place}: done\n")
        else:
            failed += 1
            out.write(f"{place}: {cause(error)}\n")
    if failed:
        raise DeadLetterError(f"{failed} of {len(chosen)} failed again, and wait")
    if not chosen:
        out.write("no dead letters\n")


def _try(queue: DeadLetters, letter: Letter) -> Exception | None:
    """Repeat a letter; the error of a failure, which is counted."""
    try:
        repeat(queue.path.parent, letter, queue.payload(letter))
    except (OSError, DeadLetterError) as error:
        queue.failed_again(letter.number, error)
        return error
    queue.end(letter.number, LetterState.DONE)
    return None
