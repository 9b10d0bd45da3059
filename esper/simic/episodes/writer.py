"""Writing a dataset of episodes: it only grows, a shard at a time, each on the disk before the manifest names it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.simic.episodes.columns import Arrays, EpisodeColumn
from esper.simic.episodes.manifest import (
    MANIFEST,
    SHARDS,
    EpisodesManifest,
    expect_same,
    read_manifest,
    write_manifest,
)
from esper.simic.episodes.shards import EpisodesError, ShardEntry, name_of, write_shard
from esper.urza.lock import Lock, hold
from esper.utils.failpoints import reach
from esper.utils.files import remove_folder, remove_leftovers, sync_folder

INCOMING = "incoming"
"""Folder of shards that are not named by the manifest yet."""


@dataclass
class EpisodesWriter:
    """The one writer of a dataset. Use it in a ``with`` block, or ``release`` it.

    Attributes:
      folder: of the dataset.
      lock: on it.
      manifest: as it is on the disk.
    """

    folder: Path
    lock: Lock
    manifest: EpisodesManifest

    def __enter__(self) -> "EpisodesWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others write."""
        self.lock.release()

    def policy(self, name: str, **known: Any) -> int:
        """The index of a policy in the table, which it is put to if it is not there.

        Args:
          name: as it was asked for; another policy of that name has a number behind its own.
          known: what tells it from others, for JSON.
        """
        wanted, policies = {"asked": name, **known}, self.manifest.policies
        for index, found in enumerate(policies):
            if {key: value for key, value in found.items() if key != "name"} == wanted:
                return index
        others = sum(found["asked"] == name for found in policies)
        own = f"{name} ({others + 1})" if others else name
        self.manifest = self.manifest._replace(policies=(*policies, {"name": own, **wanted}))
        return len(policies)

    def part(self, place: int, facts: Mapping[str, Any]) -> None:
        """Say how episodes come about, which is on the disk with the next shard.

        Args:
          place: of the part; behind the last one, it is a new one.
          facts: see ``EpisodesManifest.parts``.
        """
        parts = list(self.manifest.parts)
        parts[place : place + 1] = [dict(facts)]
        self.manifest = self.manifest._replace(parts=tuple(parts))

    @property
    def next_episode(self) -> int:
        """Number of the first episode behind all that are there."""
        return max((shard.first + shard.episodes for shard in self.manifest.shards), default=0)

    def incoming(self, first: int, count: int) -> Path:
        """Where a shard may be written, in any process, before it is taken in; no other writer's is there."""
        return self.folder / INCOMING / f"{self.lock.epoch:06d}-{name_of(first, count)}"

    def append(self, first: int, steps: Arrays, episodes: Arrays) -> ShardEntry:
        """Write a shard and take it in; see ``write_shard`` and ``take_in``."""
        place = self.incoming(first, len(episodes["length"]))
        entry = write_shard(place, self.manifest.columns, first, steps, episodes)
        self.take_in(place, entry)
        return entry

    def take_in(self, place: Path, entry: ShardEntry) -> None:
        """Make a shard part of the dataset: when this returns, it is acknowledged, and stays.

        Args:
          place: where ``write_shard`` made it.
          entry: what it returned.

        Raises:
          EpisodesError: episodes of those numbers are there already.
          LockError: another writer has the dataset now.
          OSError: it could not be written.
        """
        for shard in self.manifest.shards:
            if entry.first < shard.first + shard.episodes and shard.first < entry.first + entry.episodes:
                raise EpisodesError(f"{self.folder}: {entry.name} overlaps {shard.name}; expected further episodes")
        self.lock.check()
        reach("rename")
        place.rename(self.folder / SHARDS / entry.name)
        sync_folder(self.folder / SHARDS)
        grown = self.manifest.with_shard(entry)
        write_manifest(self.folder, grown)
        self.manifest = grown

    def take_back(self, first: int) -> None:
        """Forget the shards whose episodes have a number of at least ``first``: whoever played them plays them again.

        Raises:
          LockError: another writer has the dataset now.
          OSError: it could not be written; all are there then.
        """
        kept = tuple(shard for shard in self.manifest.shards if shard.first < first)
        if len(kept) == len(self.manifest.shards):
            return
        self.lock.check()
        shorter = self.manifest._replace(shards=kept)
        write_manifest(self.folder, shorter)
        self.manifest = shorter
        _tidy(self.folder, shorter)


def write_episodes(folder: Path, facts: Mapping[str, Any], columns: Sequence[EpisodeColumn]) -> EpisodesWriter:
    """Open a dataset to write into it; it is made where there is none.

    What a writer left that died is removed; what the manifest names stays.

    Args:
      folder: of the dataset; no folder, an empty one, or one with episodes.
      facts: see ``EpisodesManifest``.
      columns: of the arrays.

    Raises:
      EpisodesError: it holds something else, or episodes with other facts or columns; the difference is named.
      LockError: another process is writing there.
      OSError: it cannot be written.
    """
    if folder.exists() and not (folder / MANIFEST).exists() and not _is_unused(folder):
        raise EpisodesError(f"{folder}: holds other things than episodes; expected an empty or a new directory")
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    (folder / INCOMING).mkdir(exist_ok=True)
    lock = hold(folder, "another directory")
    try:
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            expect_same(folder, manifest, facts, columns)
        else:
            manifest = EpisodesManifest(dict(facts), tuple(columns))
            write_manifest(folder, manifest)
        _tidy(folder, manifest)
    except BaseException:
        lock.release()
        raise
    return EpisodesWriter(folder, lock, manifest)


OURS = (SHARDS, INCOMING, "lock", "owner.json")


def _is_unused(folder: Path) -> bool:
    """Whether nothing is in a folder, or what the first moments of a writer left."""
    return folder.is_dir() and all(path.name in OURS or ".tmp-" in path.name for path in folder.iterdir())


def _tidy(folder: Path, manifest: EpisodesManifest) -> None:
    """Remove what is not named by the manifest."""
    remove_leftovers(folder)
    for path in (folder / INCOMING).iterdir():
        remove_folder(path)
    named = {shard.name for shard in manifest.shards}
    for path in (folder / SHARDS).iterdir():
        if path.name not in named:
            remove_folder(path)
