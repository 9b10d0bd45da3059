"""The manifest of a dataset of episodes: what there is, in one file, which is written last.

What it does not list is not there: a shard whose writer died before the manifest named it is made again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esper.simic.episodes.columns import SCHEMA, EpisodeColumn, difference, from_table, to_table
from esper.simic.episodes.shards import EpisodesError, ShardEntry, entry_of
from esper.utils.documents import shown, to_json
from esper.utils.files import read_file, replace_file

MANIFEST = "manifest.json"
SHARDS = "shards"
"""Folder of the shards."""

LARGEST = 2**28


class EpisodesManifest(NamedTuple):
    """What a dataset holds.

    Attributes:
      facts: what all episodes have in common, for JSON: "task", "terms" (names), "horizon" and whatever else decides
        what a row means. Episodes with other facts are not taken in.
      columns: of the arrays.
      policies: who decided, in the order of the column "policy": "name", and what else is known of each.
      parts: how the episodes came about, one entry for every command that made some: "kind", "first" (its first
        episode), "settings", "versions".
      shards: in the order of their episodes.
    """

    facts: dict[str, Any]
    columns: tuple[EpisodeColumn, ...]
    policies: tuple[dict[str, Any], ...] = ()
    parts: tuple[dict[str, Any], ...] = ()
    shards: tuple[ShardEntry, ...] = ()

    @property
    def episodes(self) -> int:
        """How many."""
        return sum(shard.episodes for shard in self.shards)

    @property
    def steps(self) -> int:
        """Rows of the step columns."""
        return sum(shard.steps for shard in self.shards)

    @property
    def by_policy(self) -> dict[str, int]:
        """How many episodes each policy played."""
        counts = dict.fromkeys([str(policy["name"]) for policy in self.policies], 0)
        for shard in self.shards:
            for index, count in shard.policies:
                counts[str(self.policies[index]["name"])] += count
        return counts

    def with_shard(self, entry: ShardEntry) -> "EpisodesManifest":
        """The same with one more shard."""
        return self._replace(shards=tuple(sorted((*self.shards, entry), key=lambda shard: shard.first)))


def write_manifest(folder: Path, manifest: EpisodesManifest) -> None:
    """Put a manifest on the disk in the place of the one before.

    Raises:
      OSError: it could not be written; the one before still holds.
    """
    replace_file(folder / MANIFEST, manifest_bytes(manifest))


def manifest_bytes(manifest: EpisodesManifest) -> bytes:
    """The file: JSON, whose "digest" is that of all the rest of it."""
    table = {
        "schema": SCHEMA,
        "facts": manifest.facts,
        "columns": to_table(manifest.columns),
        "policies": list(manifest.policies),
        "parts": list(manifest.parts),
        "counts": {
            "episodes": manifest.episodes,
            "steps": manifest.steps,
            "shards": len(manifest.shards),
            "by_policy": manifest.by_policy,
        },
        "shards": [shard.table() for shard in manifest.shards],
    }
    return (to_json(table | {"digest": _digest(table)}, indent=1) + "\n").encode()


def _digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json({name: table[name] for name in sorted(table)}).encode()).hexdigest()


def read_manifest(folder: Path) -> EpisodesManifest:
    """What a directory says that it holds.

    Raises:
      EpisodesError: there is no manifest, it was altered, or it is of another version.
    """
    path = folder / MANIFEST
    try:
        table = json.loads(read_file(path, LARGEST))
    except FileNotFoundError:
        raise EpisodesError(f"{folder}: holds no {MANIFEST}; expected a directory of episodes") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EpisodesError(f"{path}: cannot be read: {error}") from None
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        found = shown(table.get("schema")) if isinstance(table, dict) else "no table"
        raise EpisodesError(f"{path}: schema {found}; expected {SCHEMA}")
    if table.pop("digest", None) != _digest(table):
        raise EpisodesError(f"{path}: not what was written: its digest is another")
    try:
        return EpisodesManifest(
            facts=table["facts"],
            columns=tuple(from_table(table["columns"])),
            policies=tuple(table["policies"]),
            parts=tuple(table["parts"]),
            shards=tuple(entry_of(entry) for entry in table["shards"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodesError(f"{path}: no manifest of episodes: {type(error).__name__} {error}") from None


def expect_same(
    folder: Path, found: EpisodesManifest, facts: Mapping[str, Any], columns: Sequence[EpisodeColumn]
) -> None:
    """Raise unless more episodes, of such facts and columns, may be put to those of a dataset.

    Raises:
      EpisodesError: the first difference is named.
    """
    if words := difference(columns, found.columns):
        raise EpisodesError(f"{folder}: {words}; expected the columns that are there, or another directory")
    wanted = json.loads(to_json(dict(facts)))
    for name in sorted(wanted.keys() | found.facts.keys()):
        if wanted.get(name) != found.facts.get(name):
            there, now = shown(found.facts.get(name)), shown(wanted.get(name))
            raise EpisodesError(f"{folder}: {name} is {there} there, and {now} here; expected the same")
