"""What a store of artefacts promises, whatever it keeps them in.

An artefact is bytes with facts about them. Its id is the SHA-256 of its bytes, so that to put it twice is to put it
once, and whoever reads it can tell that it is what was put. Laws, for any bytes ``b`` and facts ``f``:

    get(put(b, f)) == Artefact(sha256(b), b, f)      f as strict JSON has it; a later put's facts replace earlier ones
    delete(i) makes get(i) a Failure, and put(b, f) == i makes it there again
    get never raises for a service that is lost, and never gives bytes that do not match their id
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from esper.utils.documents import json_ready, shown

FORMAT = 1
"""Of entries; part of every key in every tier, so that another version's are never taken for this one's."""

LARGEST = 1 << 30
"""Bytes of an artefact, at most."""

LARGEST_FACTS = 1 << 20
"""Characters of its facts as JSON, at most."""

ID = re.compile(r"[0-9a-f]{64}")

KEY = ("kind", "name", "version")
"""Facts that make an entry's key, with ``/`` between them."""

REASONS = ("unknown", "foreign", "unvalidated", "damaged", "unavailable")
"""Why there is no artefact: never put, or deleted; of another format or kind; not validated; its bytes or its facts do
not match their digest; the services that hold it are lost for now."""


class StoreError(ValueError):
    """A store that cannot be opened or written, or a value that it does not take; one line."""


class Artefact(NamedTuple):
    """What a store holds.

    Attributes:
      id: SHA-256 of the bytes, in hexadecimal digits.
      data: the bytes.
      facts: what is known of them; strict JSON.
    """

    id: str
    data: bytes
    facts: dict[str, Any]


class Failure(NamedTuple):
    """Why there is no artefact.

    Attributes:
      reason: one of ``REASONS``.
      detail: one line.
    """

    reason: str
    detail: str


class StoreEntry(NamedTuple):
    """What is known of an artefact without its bytes.

    Attributes:
      id: see ``Artefact``.
      size: bytes.
      facts: see ``Artefact``.
      written: when it was last put, nanoseconds since 1970; what happens to an id later has a higher one.
      format: of the entry.
    """

    id: str
    size: int
    facts: dict[str, Any]
    written: int
    format: int = FORMAT


class Store(Protocol):
    """A content-addressed store; see the module's laws."""

    def put(self, data: bytes, facts: Mapping[str, Any]) -> str:
        """Keep an artefact; it is on a disk, or acknowledged by a service, when this returns.

        Args:
          data: up to ``LARGEST`` bytes.
          facts: strict JSON, or what ``json_ready`` makes that; ``kind``, ``name`` and ``version`` make its key, and
            ``validated`` says whether it may be used.

        Returns:
          its id.

        Raises:
          StoreError: too large, no JSON, or neither the services nor the local disk take it.
        """

    def get(self, id: str, kind: str | None = None, validated: bool = True) -> Artefact | Failure:
        """An artefact, its bytes compared with its id.

        Args:
          id: what ``put`` returned; any other text is unknown.
          kind: the fact that is expected; None = any.
          validated: whether only what was put with ``validated = True`` is given.
        """

    def exists(self, id: str) -> bool:
        """Whether it was put and not deleted, as far as can be told now."""

    def delete(self, id: str) -> None:
        """Forget an artefact; nothing where there is none.

        Raises:
          StoreError: neither the services nor the local disk can note it.
        """

    def list(self, **facts: Any) -> tuple[StoreEntry, ...]:
        """The entries with these facts, the oldest first; those that can be reached now."""

    def invalidate(self, prefix: str = "", version: str = "") -> tuple[str, ...]:
        """Delete what is out of date, in every tier and in the memory of every process.

        Args:
          prefix: of the id or the key (``key_of``); empty = any, where there is a version.
          version: the fact; empty = any, where there is a prefix.

        Returns:
          ids of what was deleted.

        Raises:
          StoreError: neither is given, or it cannot be noted.
        """

    def close(self) -> None:
        """End threads and connections."""


def id_of(data: bytes) -> str:
    """The id of bytes."""
    return hashlib.sha256(data).hexdigest()


def is_id(text: object) -> bool:
    """Whether a value can be an id."""
    return isinstance(text, str) and ID.fullmatch(text) is not None


def key_of(facts: Mapping[str, Any]) -> str:
    """Kind, name and version of an entry: ``kind/name/version``, parts that are missing empty."""
    return "/".join(str(facts.get(name, "")) for name in KEY)


def facts_text(facts: Mapping[str, Any]) -> str:
    """Facts in one spelling, ASCII only.

    Raises:
      StoreError: not JSON, nested too deeply, or too long.
    """
    try:
        text = json.dumps(json_ready(facts), sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"facts: {shown(str(error))}: expected values of JSON") from None
    if len(text) > LARGEST_FACTS:
        raise StoreError(f"facts: {len(text)} characters; expected <= {LARGEST_FACTS}")
    return text


def expect_fit(data: bytes) -> None:
    """Nothing, where bytes can be put.

    Raises:
      StoreError: too many, or no bytes.
    """
    if not isinstance(data, bytes):
        raise StoreError(f"an artefact of type {type(data).__name__}; expected bytes")
    if len(data) > LARGEST:
        raise StoreError(f"an artefact of {len(data)} bytes; expected <= {LARGEST}")


def judge(found: Artefact | Failure, format: int, kind: str | None, validated: bool) -> Artefact | Failure:
    """What a reader is given of what was found.

    Args:
      found: the artefact, or why there is none.
      format: of its entry.
      kind, validated: see ``Store.get``.
    """
    if isinstance(found, Failure):
        return found
    if format != FORMAT:
        return Failure("foreign", f"{found.id}: an entry of format {format}; expected {FORMAT}")
    if kind is not None and found.facts.get("kind") != kind:
        return Failure("foreign", f"{found.id}: kind {shown(found.facts.get('kind'))}; expected {shown(kind)}")
    if validated and found.facts.get("validated") is not True:
        return Failure("unvalidated", f"{found.id}: was not validated; expected the fact validated = true")
    return found


def unknown(id: object) -> Failure:
    """The failure of an id that is not there."""
    if is_id(id):
        return Failure("unknown", f"{id}: not in this store")
    return Failure("unknown", f"{shown(id)}: no id; expected 64 hexadecimal digits")


def matches(entry: StoreEntry, prefix: str, version: str) -> bool:
    """Whether an entry is among those that ``Store.invalidate`` deletes."""
    under = entry.id.startswith(prefix) or key_of(entry.facts).startswith(prefix)
    return under and (not version or entry.facts.get("version") == version)
