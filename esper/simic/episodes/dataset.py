"""Reading a dataset of episodes: rows and windows by number, from files that are mapped for as long as a read takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from esper.simic.episodes.columns import EpisodeColumn
from esper.simic.episodes.manifest import MANIFEST, SHARDS, EpisodesManifest, read_manifest
from esper.simic.episodes.shards import EpisodesError, ShardEntry, digest_of_file, map_column, take_rows, verify_shard

AHEAD = ("reward", "terminated", "truncated")
"""Step columns that stand under "next" in a window, [..., 1] as TorchRL has them."""

SMALL = 64 * 2**20
"""Bytes of a dataset up to which the columns that are read stay in memory: else opening its files takes most time."""

ALWAYS = ("observation", "action_mask", "action", "probability", "policy", "episode", "step")
"""Step columns of every window."""


class Episodes:
    """A dataset of episodes, as it was when it was opened: what is put to it later is not seen.

    Of one larger than ``SMALL``, nothing is held in memory but the manifest and a few numbers for every episode.
    A row's place is its number among all steps, episode by episode.

    Attributes:
      folder: of the dataset.
      manifest: what it holds.
      starts: int64 [N]; first row of each episode.
      lengths: int64 [N]; its rows.
      numbers: int64 [N]; its number, see the column "episode".
    """

    def __init__(self, folder: Path, manifest: EpisodesManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._columns = {column.name: column for column in manifest.columns}
        runs = [run for shard in manifest.shards for run in shard.lengths]
        counts = torch.tensor([count for _, count in runs], dtype=torch.int64)
        self.lengths = torch.tensor([length for length, _ in runs], dtype=torch.int64).repeat_interleave(counts)
        self.starts = self.lengths.cumsum(0) - self.lengths
        firsts = [torch.arange(shard.first, shard.first + shard.episodes) for shard in manifest.shards]
        self.numbers = torch.cat(firsts) if firsts else torch.zeros(0, dtype=torch.int64)
        self._offsets = dict[tuple[str, str], int]()
        self._held = dict[str, np.ndarray]()
        rows = {"step": manifest.steps, "episode": len(self)}
        self._is_small = sum(column.row_bytes * rows[column.per] for column in manifest.columns) <= SMALL
        self._ends = {
            "step": np.cumsum([shard.steps for shard in manifest.shards]),
            "episode": np.cumsum([shard.episodes for shard in manifest.shards]),
        }

    @classmethod
    def open(cls, path: Path) -> "Episodes":
        """Open a directory.

        Raises:
          EpisodesError: it holds no dataset of episodes, or its manifest was altered.
        """
        return cls(path, read_manifest(path))

    def __len__(self) -> int:
        """Episodes N."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """Rows of the step columns."""
        return self.manifest.steps

    @property
    def columns(self) -> tuple[EpisodeColumn, ...]:
        """What there is of each step and of each episode."""
        return self.manifest.columns

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds the digests of all else: the dataset's identity."""
        return digest_of_file(self.folder / MANIFEST)

    def read(self, name: str, rows: Tensor | None = None) -> Tensor:
        """Some rows of a column, a copy: [n, *shape].

        Args:
          name: of a step column, whose rows are steps, or of an episode column, whose rows are places of episodes.
          rows: int64 [n], or any shape, which the result then has in front; None: all.

        Raises:
          EpisodesError: no such column or row, or a file that is not what the manifest says.
        """
        column = self._columns.get(name)
        if column is None:
            raise EpisodesError(f"{self.folder}: no column {name!r}; expected one of {', '.join(self._columns)}")
        total = self.steps if column.per == "step" else len(self)
        wanted = np.arange(total) if rows is None else rows.cpu().numpy().reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < total):
            raise EpisodesError(f"{self.folder}: {name}: row {int(wanted.max())}: expected 0 to {total - 1}")
        if self._is_small and name not in self._held:
            self._held[name] = self._rows(column, np.arange(total))
        out = self._held[name][wanted] if self._is_small else self._rows(column, wanted)
        shape = (total,) if rows is None else tuple(rows.shape)
        return torch.from_numpy(out.reshape(*shape, *column.shape))

    def _rows(self, column: EpisodeColumn, wanted: np.ndarray) -> np.ndarray:
        """Rows of a column, shard by shard, from the files."""
        out = np.empty((wanted.size, *column.shape), column.dtype)
        ends = self._ends[column.per]
        shards = np.searchsorted(ends, wanted, side="right")
        for place in np.unique(shards):
            entry, here = self.manifest.shards[place], shards == place
            size = entry.steps if column.per == "step" else entry.episodes
            out[here] = self._take(entry, column, size, wanted[here] - (ends[place] - size))
        return out

    def _take(self, entry: ShardEntry, column: EpisodeColumn, size: int, rows: np.ndarray) -> np.ndarray:
        """Rows of a shard's column; where they begin in the file is looked up once."""
        place, folder = (entry.name, column.name), self.folder / SHARDS / entry.name
        if place not in self._offsets:
            self._offsets[place] = int(map_column(folder, column, size).offset)
        shape = (size, *column.shape)
        return take_rows(folder / f"{column.name}.npy", self._offsets[place], shape, column.dtype, rows)

    def windows(self, length: int = 0, episodes: Tensor | None = None) -> Tensor:
        """Where windows lie, int64 [W, 2] of first row and rows. Each is of one episode; together, they are all steps.

        Args:
          length: rows of a window at most; an episode's last one may be shorter. 0: every episode is one window.
          episodes: int64 [n]; places of the episodes that are cut; None: all.
        """
        starts, sizes = self.starts, self.lengths
        if episodes is not None:
            starts, sizes = starts[episodes], sizes[episodes]
        if length < 1:
            return torch.stack((starts, sizes), 1)
        pieces = -(-sizes // length)
        inside = torch.arange(int(pieces.sum())) - (pieces.cumsum(0) - pieces).repeat_interleave(pieces)
        first = starts.repeat_interleave(pieces) + inside * length
        left = (starts + sizes).repeat_interleave(pieces) - first
        return torch.stack((first, left.clamp(max=length)), 1)

    def window(self, table: Tensor, further: Sequence[str] = ()) -> TensorDictBase:
        """Windows as a batch [B, T], T the longest; shorter ones end in rows that are no data.

        Args:
          table: int64 [B, 2], rows of ``windows``.
          further: step columns beside the usual ones.

        Returns:
          ``ALWAYS`` and ``further`` [B, T, ...]; "is_init" bool [B, T, 1], true at the first row of each window, as a
          policy with memory must begin there anew; "valid" bool [B, T], false where there is no data (all legal,
          action 0, rewards 0 there); under "next" "observation" and "action_mask", of an episode's last step the true
          ones, and "reward", "terminated", "truncated" and "done", [B, T, 1] each.

        Raises:
          EpisodesError: as ``read``.
        """
        first, sizes = table.unbind(1)
        within = torch.arange(int(sizes.max()) if len(table) else 0)
        valid = within < sizes.unsqueeze(1)
        rows = torch.where(valid, first.unsqueeze(1) + within, first.unsqueeze(1))
        found = {name: self.read(name, rows) for name in (*ALWAYS, *further)}
        ahead = {name: self.read(name, rows).unsqueeze(-1) for name in AHEAD}
        ahead["done"] = ahead["terminated"] | ahead["truncated"]
        ahead |= self._successors(rows)
        begins = (within == 0).expand_as(valid).unsqueeze(-1)
        batch = TensorDict({**found, "next": ahead}, batch_size=rows.shape)
        batch = batch.where(valid, torch.zeros_like(batch))
        batch["action_mask"] = batch["action_mask"] | ~valid.unsqueeze(-1)
        batch["next", "action_mask"] = batch["next", "action_mask"] | ~valid.unsqueeze(-1)
        return batch.update({"is_init": begins.clone(), "valid": valid})

    def _successors(self, rows: Tensor) -> dict[str, Tensor]:
        """What a policy saw, or would have seen, behind some rows, and what it was allowed."""
        place = torch.searchsorted(self.starts, rows, right=True) - 1
        last = rows + 1 == (self.starts + self.lengths)[place]
        following = torch.where(last, rows, rows + 1)
        found = {}
        for name, end in (("observation", "last_observation"), ("action_mask", "last_mask")):
            found[name] = self.read(name, following)
            found[name][last] = self.read(end, place[last])
        return found

    def verify(self) -> None:
        """Read every byte.

        Raises:
          EpisodesError: one was altered or is missing; the file is named.
        """
        for entry in self.manifest.shards:
            verify_shard(self.folder / SHARDS / entry.name, entry, self.columns)
