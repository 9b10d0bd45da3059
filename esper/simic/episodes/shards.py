"""Shards: some episodes as a folder of ``.npy`` files, made in one step and never written again.

``shard.json`` in it holds the digest of each file; the manifest holds the digest of ``shard.json``. So one flipped
byte anywhere is found, and the file that has it is named.
"""

import errno
import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from esper.simic.episodes.columns import Arrays, EpisodeColumn, as_columns
from esper.utils.documents import to_json
from esper.utils.files import commit_folder, read_file

FACTS = "shard.json"

MARGIN = 64 * 2**20
"""Bytes of the disk that writing leaves alone."""

LARGEST_FACTS = 2**20
CHUNK = 2**20


class EpisodesError(ValueError):
    """A dataset of episodes that cannot be read, or written as was asked; one line with place, value and cause."""


class ShardEntry(NamedTuple):
    """A shard as the manifest lists it.

    Attributes:
      name: of its folder.
      first: number of its first episode.
      lengths: of its episodes in order, as (steps, how many in a row).
      policies: how many of its episodes each policy played, by index.
      sha256: of its ``shard.json``.
    """

    name: str
    first: int
    lengths: tuple[tuple[int, int], ...]
    policies: tuple[tuple[int, int], ...]
    sha256: str

    @property
    def episodes(self) -> int:
        """How many."""
        return sum(count for _, count in self.lengths)

    @property
    def steps(self) -> int:
        """Rows of its step columns."""
        return sum(length * count for length, count in self.lengths)

    def table(self) -> dict[str, Any]:
        """As the manifest has it."""
        pairs = {"lengths": [list(pair) for pair in self.lengths], "policies": [list(pair) for pair in self.policies]}
        return self._asdict() | pairs


def entry_of(table: Mapping[str, Any]) -> ShardEntry:
    """The entry that ``ShardEntry.table`` made.

    Raises:
      KeyError, TypeError, ValueError: it is none.
    """
    pairs = [tuple((int(a), int(b)) for a, b in table[name]) for name in ("lengths", "policies")]
    return ShardEntry(str(table["name"]), int(table["first"]), pairs[0], pairs[1], str(table["sha256"]))


def name_of(first: int, count: int) -> str:
    """The name of a shard of so many episodes."""
    return f"episodes-{first:09d}-{count:06d}"


def in_runs(values: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Values as (value, how many in a row)."""
    return tuple((int(value), len(list(same))) for value, same in groupby(values))


def write_shard(
    folder: Path, columns: Sequence[EpisodeColumn], first: int, steps: Arrays, episodes: Arrays
) -> ShardEntry:
    """Make a shard, on the disk when this returns.

    Args:
      folder: where; there must be nothing.
      columns: of the dataset.
      first: number of the first episode.
      steps: step columns [n, ...], episode by episode, without "episode" and "step", which follow from the rest.
      episodes: episode columns [m, ...].

    Returns:
      its entry.

    Raises:
      ConfigError: the arrays are not those of the columns.
      OSError: it could not be written, or there is no room; nothing is there then.
    """
    lengths = np.asarray(episodes["length"], dtype=np.int64)
    numbers = np.arange(first, first + len(lengths))
    counted = np.concatenate([np.arange(length) for length in lengths]) if len(lengths) else numbers
    steps = {**steps, "episode": np.repeat(numbers, lengths), "step": counted}
    parts = [as_columns(columns, steps, "step"), as_columns(columns, episodes, "episode")]
    files = {f"{name}.npy": npy_bytes(array) for part in parts for name, array in part.items()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    starts = np.cumsum(lengths) - lengths
    played = np.unique(parts[0]["policy"][starts], return_counts=True)
    facts = {"first": first, "episodes": len(lengths), "steps": int(lengths.sum()), "sha256": digests}
    told = (to_json(facts, indent=1) + "\n").encode()
    expect_room(folder.parent, sum(map(len, files.values())))
    commit_folder(folder, files | {FACTS: told})
    name, digest = name_of(first, len(lengths)), hashlib.sha256(told).hexdigest()
    by_policy = tuple((int(policy), int(count)) for policy, count in zip(*played, strict=True))
    return ShardEntry(name, first, in_runs(lengths.tolist()), by_policy, digest)


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a ``.npy`` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def expect_room(folder: Path, size: int) -> None:
    """Raise unless so many bytes fit on the disk, with ``MARGIN`` to spare.

    Raises:
      OSError: ENOSPC; they do not.
    """
    free = shutil.disk_usage(folder).free
    if free < size + MARGIN:
        text = f"{free:,} bytes are free; expected {size + MARGIN:,}"
        raise OSError(errno.ENOSPC, f"No space left on device: {text}", str(folder))


def map_column(folder: Path, column: EpisodeColumn, rows: int) -> np.ndarray:
    """A column of a shard, mapped read-only: [rows, *shape].

    Raises:
      EpisodesError: the file is not there, or is not what the manifest says.
    """
    path = folder / f"{column.name}.npy"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EpisodesError(f"{path}: cannot be read: {error}") from None
    if array.shape != (rows, *column.shape) or array.dtype.str != column.dtype:
        found = f"{array.dtype.str} {list(array.shape)}"
        raise EpisodesError(f"{path}: holds {found}; expected {column.dtype} {[rows, *column.shape]}")
    return array


def verify_shard(folder: Path, entry: ShardEntry, columns: Sequence[EpisodeColumn]) -> None:
    """Read every byte of a shard.

    Raises:
      EpisodesError: a file is missing, or another than was written; its name is in the line.
    """
    path = folder / FACTS
    try:
        told = read_file(path, LARGEST_FACTS)
    except (OSError, ValueError) as error:
        raise EpisodesError(f"{path}: cannot be read: {error}") from None
    if hashlib.sha256(told).hexdigest() != entry.sha256:
        raise EpisodesError(f"{path}: not what was written: its digest is not the manifest's")
    digests = json.loads(told)["sha256"]
    for column in columns:
        file = folder / f"{column.name}.npy"
        if digest_of_file(file) != digests.get(file.name):
            raise EpisodesError(f"{file}: not what was written: its digest is not that of {FACTS}")
    _verify_counts(folder, entry, columns)


def _verify_counts(folder: Path, entry: ShardEntry, columns: Sequence[EpisodeColumn]) -> None:
    """The counts of the manifest are those of the files."""
    for column in columns:
        map_column(folder, column, entry.steps if column.per == "step" else entry.episodes)
    by_name = {column.name: column for column in columns}
    found = in_runs(map_column(folder, by_name["length"], entry.episodes).tolist())
    if found != entry.lengths:
        raise EpisodesError(f"{folder / 'length.npy'}: other lengths than the manifest's")


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
      EpisodesError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise EpisodesError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
