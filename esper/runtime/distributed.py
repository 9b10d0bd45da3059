"""The processes of a job on ``torch.distributed``: joining them, one device each, collectives, and what is told of one.

``torchrun --nproc-per-node N -m esper train ...`` starts them; where there is a GPU each takes its own. On CPUs the
collectives are gloo's, between GPUs NCCL's. A rank that dies takes the job with it: the others learn of it in their
next collective, and torchrun starts all of them again, if it is allowed to.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from esper.leyline.config import ConfigError
from esper.utils.documents import cause

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others; a first round may compile for minutes."""

POLL = 1.0
"""Seconds between two looks at whether the launcher is still there."""

ERROR = "error/{}"
"""Under which key of the job's store a rank says why it ended."""


class RankLostError(ConnectionError):
    """Another rank is gone: a collective cannot be finished. The job goes on when all are started again."""


class Launch(NamedTuple):
    """What the launcher says of a process.

    Attributes:
      rank, size: of the job.
      local_rank, local_size: of those on this machine.
      job: the job's name.
      restarts: how often all of them were started again before.
      most: how often they may be.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    job: str
    restarts: int
    most: int


def launch() -> Launch | None:
    """What torchrun says of this process; None where it did not start it."""
    told = os.environ
    if "TORCHELASTIC_RUN_ID" not in told:
        return None
    rank, size, local_rank, local_size = (
        int(told[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    restarts, most = (int(told.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return Launch(rank, size, local_rank, local_size, told["TORCHELASTIC_RUN_ID"], restarts, most)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_device(name: str, launched: Launch) -> str:
    """The device of a rank: the CPU, or of the GPUs that of its number.

    Args:
      name: as ``--device`` has it.
      launched: of the rank.

    Raises:
      ConfigError: one GPU is named for several ranks, or there are fewer than ranks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind != "cuda":
        return name
    if index and launched.local_size > 1:
        raise ConfigError(
            f"--device = {name!r}: one for {launched.local_size} ranks; expected cuda, of which each has one"
        )
    if launched.local_size > torch.cuda.device_count():
        raise ConfigError(
            f"--device = {name!r}: {launched.local_size} ranks on {torch.cuda.device_count()} GPUs; expected one each: "
            f"--nproc-per-node {max(1, torch.cuda.device_count())}"
        )
    return name if index else f"cuda:{launched.local_rank}"


class RankGroup:
    """The ranks of a job, as ``esper.simic.ranks.Ranks`` has them.

    Attributes:
      launched: what the launcher says of this one.
      look: called where a collective fails; raises where this rank was asked to stop, which is why it failed then.
    """

    def __init__(self, launched: Launch, store: dist.Store) -> None:
        self.launched, self._store = launched, dist.PrefixStore("esper", store)
        self.look: Callable[[], object] = lambda: None

    @property
    def rank(self) -> int:
        """Which one it is."""
        return self.launched.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.launched.size

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all ranks' values, the same bits on all.

        Raises:
          RankLostError: one of them is gone.
        """
        summed = value.detach().clone(memory_format=torch.contiguous_format)
        self._call(lambda: dist.all_reduce(summed))
        return summed

    def rows(self, value: Tensor) -> Tensor:
        """All ranks' rows, in order; by their bytes, whatever they are.

        Raises:
          RankLostError: one of them is gone.
        """
        mine = value.detach().contiguous()
        counts = [torch.zeros(1, dtype=torch.int64, device=value.device) for _ in range(self.size)]
        self._call(lambda: dist.all_gather(counts, counts[0].new_tensor([len(mine)])))
        padded = mine.new_zeros(max(int(count) for count in counts), *mine.shape[1:])
        padded[: len(mine)] = mine
        sent = (padded.flatten(1) if padded.dim() > 1 else padded.unsqueeze(1)).view(torch.uint8)
        found = [torch.empty_like(sent) for _ in range(self.size)]
        self._call(lambda: dist.all_gather(found, sent))
        parts = [part.view(value.dtype).reshape(padded.shape) for part in found]
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def tell(self, error: Exception) -> None:
        """Leave word of why this rank ends, for the first one to say."""
        self._store.set(ERROR.format(self.rank), cause(error))

    def told(self) -> str:
        """What others left word of, or nothing."""
        keys = [(rank, ERROR.format(rank)) for rank in range(self.size)]
        found = [f"rank {rank}: {self._store.get(key).decode()}" for rank, key in keys if self._store.check([key])]
        return "; ".join(found)

    def _call(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            self.look()
            raise RankLostError(
                f"rank {self.rank} of {self.size}: another rank is gone ({cause(error)[:120]})"
            ) from None


@contextmanager
def joined(launched: Launch, device: str) -> Iterator[RankGroup]:
    """Be one of the job's ranks within the block.

    Raises:
      RankLostError: the others cannot be reached.
    """
    _follow_launcher()
    place = torch.device(device)
    on_gpu = place.type == "cuda"
    try:
        shared, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
        # the launcher keeps its store over restarts, with the addresses of ranks that are dead
        store = dist.PrefixStore(f"start/{launched.restarts}", shared)
        store.set_timeout(PATIENCE)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
            device_id=place if on_gpu else None,
        )
    except RuntimeError as error:
        raise RankLostError(f"rank {launched.rank}: the others cannot be reached ({cause(error)[:120]})") from None
    try:
        group = RankGroup(launched, store)
        group.sum(torch.zeros(1, device=place))  # connects all, within the time that a rank waits
        yield group
    finally:
        dist.destroy_process_group()


def _follow_launcher() -> None:
    """Ask this process to stop when the launcher is gone: nobody else would, and it would keep memory and device."""
    if os.name != "posix":
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
