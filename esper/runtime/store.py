"""``esper store ls | get | verify | gc | invalidate``: what is in a store, whether it is whole, and what may go."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TextIO

from esper.urza.store.contract import Failure, StoreEntry, StoreError, is_id, key_of, matches
from esper.urza.store.opening import PREFIX, StoreSettings, from_environment, open_store
from esper.urza.store.tiers import Tiers
from esper.urza.store.upkeep import GRACE, collect, verify
from esper.utils.documents import cause, one_line, to_json
from esper.utils.files import replace_file
from esper.utils.paths import user_path
from esper.utils.settings import Parser, SettingsError, boolean, spell
from esper.utils.terminal import output

SHORTEST = 8
"""Digits at the beginning of an id that may stand for it."""

LARGEST_GRACE = 10 * 365 * 86_400.0


def artefact_store(arguments: Sequence[str], out: TextIO | None = None) -> int:
    """Run ``ls | get ID --to FILE | verify | gc [--grace SECONDS] | invalidate [--prefix TEXT] [--version TEXT]``.

    Args:
      arguments: words after ``esper store``.
      out: where lines, or one JSON object, go.

    Returns:
      exit status; 1 where ``verify`` found damage that it could not repair.

    Raises:
      SettingsError: the words are not as above.
      StoreError: the store cannot be opened, or has not what is asked for.
      SystemExit: ``--help``.
    """
    out, given = output(out), _parse(arguments)
    settings = from_environment()
    named = {entry.name: getattr(given, entry.name) for entry in fields(StoreSettings)}
    settings = replace(settings, **{name: value for name, value in named.items() if value is not None})
    with open_store(settings) as store:
        try:
            return ACTIONS[given.action](store, given, out)
        except OSError as error:  # a service; what it says names no secret
            raise StoreError(f"{given.action}: {cause(error)}; expected services that answer") from None


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    text = f"Artefacts and where they are kept; addresses with passwords are better given by {PREFIX}SQL and so on."
    parser = Parser(prog="esper store", description=text, allow_abbrev=False)
    parser.add_argument("action", choices=tuple(ACTIONS))
    parser.add_argument("id", nargs="?", help=f"of get: an id, or its first {SHORTEST} digits or more")
    for entry in fields(StoreSettings):
        help = f"{entry.metadata['help']} (environment: {PREFIX}{entry.name.upper()})"
        parser.add_argument(f"--{entry.name}", metavar="TEXT", help=help)
    parser.add_argument("--to", metavar="FILE", help="of get: where its bytes go")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="of ls, invalidate: kind/name/version, or an id")
    parser.add_argument("--version", default="", metavar="TEXT", help="of ls, invalidate: the fact version")
    text = "of gc: seconds for which an object may lie without an entry"
    parser.add_argument("--grace", type=_seconds, default=GRACE, metavar="SECONDS", help=text)
    parser.add_argument("--json", type=boolean, default=False, metavar="true|false", help="one JSON object")
    given = parser.parse_args(spell(arguments, ("json",), positionals=True))
    if (given.action == "get") != (given.id is not None):
        raise SettingsError(f"{given.action}: expected {'an id' if given.action == 'get' else 'no id'}")
    if given.action == "get" and given.to is None:
        raise SettingsError("get: expected --to FILE")
    if given.action == "invalidate" and not given.prefix and not given.version:
        raise SettingsError("invalidate: expected --prefix TEXT, --version TEXT, or both")
    return given


def _seconds(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value <= LARGEST_GRACE:
        raise argparse.ArgumentTypeError(f"{word!r}: expected seconds from 0 to {LARGEST_GRACE:.0f}")
    return value


def _list(store: Tiers, given: argparse.Namespace, out: TextIO) -> int:
    entries = [each for each in _entries(store) if matches(each, given.prefix, given.version)]
    if given.json:
        out.write(to_json({"entries": [each._asdict() for each in entries], "metrics": store.metrics()}) + "\n")
        return 0
    for each in entries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.written / 1e9))
        state = "validated" if each.facts.get("validated") is True else "not validated"
        out.write(one_line(f"{each.id[:12]}  {each.size:>10,} B  {when}  {state:<13}  {key_of(each.facts)}") + "\n")
    waiting = store.postponed.waiting()
    lines = f", {waiting} operations wait in the outbox" if waiting else ""
    out.write(f"{len(entries)} artefacts, {sum(each.size for each in entries):,} B{lines}\n")
    return 0


def _entries(store: Tiers) -> tuple[StoreEntry, ...]:
    """All entries.

    Raises:
      StoreError: the database is lost, so that not all of them are known.
    """
    entries = store.list()
    if store.metrics()["database"].get("degradations"):
        raise StoreError("ls: the database does not answer; expected one that does")
    return entries


def _get(store: Tiers, given: argparse.Namespace, out: TextIO) -> int:
    found = store.get(_whole(store, given.id), validated=False)
    if isinstance(found, Failure):
        raise StoreError(f"{found.reason}: {found.detail}")
    try:
        replace_file(user_path(given.to), found.data)
    except OSError as error:
        raise StoreError(f"--to {given.to}: {cause(error)}; expected a place for a file") from None
    if given.json:
        out.write(to_json({"id": found.id, "facts": found.facts, "file": given.to}) + "\n")
    else:
        out.write(one_line(f"{found.id}  {len(found.data):,} B  {key_of(found.facts)} -> {given.to}") + "\n")
    return 0


def _whole(store: Tiers, id: str) -> str:
    """The id that some digits begin."""
    if is_id(id) or len(id) < SHORTEST:
        return id
    found = [each.id for each in _entries(store) if each.id.startswith(id)]
    if len(found) > 1:
        raise StoreError(f"{id}: begins {len(found)} ids; expected more digits")
    return found[0] if found else id


def _verify(store: Tiers, given: argparse.Namespace, out: TextIO) -> int:
    number, found = len(store.watched.ask("database", store.entries.ids)), list(verify(store))
    left = sum(not each.repaired for each in found)
    if given.json:
        out.write(to_json({"artefacts": number, "damaged": [each._asdict() for each in found]}) + "\n")
        return int(left > 0)
    for each in found:
        out.write(one_line(f"{each.tier}: {each.detail}{'; repaired' if each.repaired else ''}") + "\n")
    out.write(f"{number} artefacts, {len(found)} damaged, {len(found) - left} of them repaired\n")
    return int(left > 0)


def _collect(store: Tiers, given: argparse.Namespace, out: TextIO) -> int:
    found = collect(store, given.grace)
    if given.json:
        out.write(to_json(found._asdict()) + "\n")
        return 0
    out.write(
        f"{found.objects} objects without an entry removed ({found.bytes:,} B), {found.kept} are younger than "
        f"{given.grace:g} s, {found.leftovers} leftovers removed\n"
    )
    return 0


def _invalidate(store: Tiers, given: argparse.Namespace, out: TextIO) -> int:
    ids = store.invalidate(given.prefix, given.version)
    waiting = store.postponed.waiting()
    if given.json:
        out.write(to_json({"invalidated": list(ids), "waiting": waiting}) + "\n")
        return 0
    for id in ids:
        out.write(f"{id}\n")
    out.write(f"{len(ids)} artefacts invalidated{'; the rest waits in the outbox' if waiting else ''}\n")
    return 0


ACTIONS: dict[str, Callable[[Tiers, argparse.Namespace, TextIO], int]] = {
    "ls": _list,
    "get": _get,
    "verify": _verify,
    "gc": _collect,
    "invalidate": _invalidate,
}
"""What ``esper store`` does."""
