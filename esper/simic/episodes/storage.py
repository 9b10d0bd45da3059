"""TorchRL's replay buffers over recorded episodes: a storage whose items are windows, read from the files when sampled.

It is read-only, makes no file and installs no signal handler, which TorchRL's own storages of memory maps do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data.replay_buffers import ReplayBuffer, SamplerWithoutReplacement
from torchrl.data.replay_buffers.storages import Storage

from esper.simic.episodes.dataset import Episodes


class EpisodeStorage(Storage):
    """Windows of recorded episodes as items of a replay buffer.

    Attributes:
      episodes: the dataset.
      table: int64 [W, 2]; where the windows lie, from ``Episodes.windows``.
      further: step columns beside the usual ones.
    """

    def __init__(self, episodes: Episodes, table: Tensor, further: Sequence[str] = ()) -> None:
        super().__init__(max_size=len(table))
        self.episodes, self.table, self.further = episodes, table, tuple(further)

    def __len__(self) -> int:
        """Windows W."""
        return len(self.table)

    def get(self, index: Any) -> TensorDictBase:
        """Windows by number, [n, T], see ``Episodes.window``; of an int, [T]."""
        if isinstance(index, int):
            return self.episodes.window(self.table[index : index + 1], self.further)[0]
        return self.episodes.window(self.table[index], self.further)

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """What was recorded stays as it is.

        Raises:
          TypeError: always.
        """
        raise TypeError("recorded episodes are read-only; a dataset grows by esper.simic.episodes.writer alone")


def replay(episodes: Episodes, length: int, batch: int, seed: int, further: Sequence[str] = ()) -> ReplayBuffer:
    """A replay buffer that goes through all windows in random order, again and again.

    Args:
      episodes: the dataset.
      length: rows of a window at most; 0: whole episodes.
      batch: windows of a sample.
      seed: of the order.
      further: step columns beside the usual ones.

    Returns:
      a buffer whose ``sample()`` is a batch [batch, T] as ``Episodes.window`` has it; nothing can be put into it.
    """
    storage = EpisodeStorage(episodes, episodes.windows(length), further)
    buffer = ReplayBuffer(
        storage=storage,
        sampler=SamplerWithoutReplacement(drop_last=True),
        batch_size=batch,
        collate_fn=lambda found: found,
    )
    buffer.set_rng(torch.Generator().manual_seed(seed))
    return buffer
