"""One learner on several ranks: which environments are whose, and sums over all of them.

A rank is a process with some of the environments, a copy of the learner and a device. Ranks hold blocks of the global
order, so that environment i has the number i, and draws by it, whatever the number of ranks is. A mean over all
environments is the sum of what the ranks have of it, each decision weighted by one over the number of all: N ranks of
E/N environments compute the update of one rank of E, to rounding. No rank is asked for anything while environments
step: all collectives are those of the learner, and their number follows from what all ranks know.

Source: synchronous data parallelism, Goyal et al. 2017, "Accurate, large minibatch SGD", section 3, with weights by
count in place of equal shares; Li et al. 2020, "PyTorch Distributed".
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import Parameter


class Shard(NamedTuple):
    """A block of a global order of ``total``: ``size`` of them from ``first`` on."""

    first: int
    size: int
    total: int

    @property
    def numbers(self) -> Tensor:
        """Global places, int64 [size]."""
        return torch.arange(self.first, self.first + self.size)

    def own(self, places: Tensor) -> Tensor:
        """Which of some global places lie here, as places of the block, in their order.

        Args:
          places: int64 [n].

        Returns:
          int64 [m], m <= n; the places as they are where the block is everything.
        """
        if self.size == self.total:
            return places
        here = (places >= self.first) & (places < self.first + self.size)
        return places[here] - self.first


def shards(total: int, ranks: int) -> list[Shard]:
    """Blocks of ``total``, one for each rank, in order; sizes differ by one at most, and the larger come first."""
    least, larger = divmod(total, ranks)
    counts = [least + (rank < larger) for rank in range(ranks)]
    return [Shard(sum(counts[:rank]), count, total) for rank, count in enumerate(counts)]


def blocks(counts: Sequence[int]) -> list[Shard]:
    """Blocks of the given sizes, in order."""
    return [Shard(sum(counts[:rank]), count, sum(counts)) for rank, count in enumerate(counts)]


class Ranks(Protocol):
    """The ranks of a job, seen from one of them. All of them call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """Which one it is, 0 <= rank < size."""

    @property
    def size(self) -> int:
        """How many there are."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all ranks' values, of one shape and dtype; a new tensor, with the same bits on all ranks."""

    def rows(self, value: Tensor) -> Tensor:
        """All ranks' rows [e, ...], in the order of the ranks: [E, ...]; e may differ, also be 0."""


class Alone(NamedTuple):
    """One rank: nothing is summed, nothing gathered."""

    rank: int = 0
    size: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """The value."""
        return value

    def rows(self, value: Tensor) -> Tensor:
        """The rows."""
        return value


ALONE = Alone()


def shard_of(total: int, ranks: Ranks) -> Shard:
    """The block of this rank."""
    return shards(total, ranks.size)[ranks.rank]


def places_of(ranks: Ranks, counts: Sequence[int]) -> list[Shard]:
    """Where this rank's rows lie among those of all ranks.

    Args:
      ranks: of the job.
      counts: how many rows this rank has of each of several tables.

    Returns:
      by table, its block.
    """
    if ranks.size == 1:
        return [Shard(0, count, count) for count in counts]
    found = ranks.rows(torch.tensor([list(counts)])).T.tolist()
    return [blocks(column)[ranks.rank] for column in found]


def whole(ranks: Ranks, batch: TensorDictBase, keys: Iterable[str | tuple[str, ...]]) -> TensorDictBase:
    """All ranks' rows of some keys of a batch [e, ...], in global order; the batch itself where there is one rank."""
    if ranks.size == 1:
        return batch
    rows = {key: ranks.rows(batch[key]) for key in keys}
    size = next(iter(rows.values())).shape[: len(batch.batch_size)]
    return TensorDict(rows, batch_size=size)


def whole_digests(ranks: Ranks, digests: Sequence[bytes]) -> list[bytes]:
    """All ranks' digests, of one length each, in global order."""
    if ranks.size == 1:
        return list(digests)
    rows = ranks.rows(torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(len(digests), -1))
    return [bytes(row) for row in rows.tolist()]


def is_common(ranks: Ranks, digest: bytes) -> bool:
    """Whether all ranks have the same digest, of one length."""
    found = whole_digests(ranks, [digest])
    return all(each == found[0] for each in found)


def share(ranks: Ranks, flags: Tensor) -> Tensor:
    """Which share of all ranks' flags is set, []: exactly 0 or 1 where none or all are."""
    held, count = ranks.sum(torch.stack((flags.sum().float(), flags.new_full((), flags.numel(), dtype=torch.float32))))
    return held / count


def sum_gradients(ranks: Ranks, parameters: Sequence[Parameter], numbers: Tensor) -> Tensor:
    """Put the sums of all ranks' gradients in the place of this rank's; one collective.

    Args:
      ranks: of the job.
      parameters: a rank's have gradients, or none where it has no row of the minibatch.
      numbers: [n]; summed likewise, on the way.

    Returns:
      the sums of the numbers. A parameter that has a gradient on no rank has none afterwards.
    """
    if ranks.size == 1:
        return numbers
    has = numbers.new_tensor([float(each.grad is not None) for each in parameters])
    flat = [(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in parameters]
    summed = ranks.sum(torch.cat([numbers, has, *flat]))
    sizes = [len(numbers), len(has), *(each.numel() for each in parameters)]
    numbers, has, *flat = summed.split(sizes)
    for parameter, count, gradient in zip(parameters, has.tolist(), flat, strict=True):
        parameter.grad = gradient.reshape(parameter.shape).clone() if count else None
    return numbers
