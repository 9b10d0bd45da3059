"""A wide static network, pruned to a narrower one half way: channels, by batch norm's scale times the filter's norm.

Structured pruning after Li et al. 2017 (filters by norm) and Liu et al. 2017 (channels by batch norm's scale). What is
left is the ordinary narrower host with some of the wide one's numbers; it is trained for the other half of the steps,
with fresh moments of its optimizer. Parameters are the narrow network's, FLOPs those of both halves.
"""

import time

import torch
from torch import Tensor

from bench.frontier_contenders import PRUNED, Contender, static
from bench.frontier_flops import Spent
from bench.frontier_play import Point, Study, advance, best, init, judged, make_engine
from esper.kasmina import arena
from esper.kasmina.cnn import cnn_host
from esper.kasmina.host import Host
from esper.leyline.state import ParamState, Snapshot, State, lock
from esper.runtime.tasks import Task


def importance(conv: Tensor, scale: Tensor) -> Tensor:
    """What a channel is worth: |gamma| times the L2 norm of its filter.

    Args:
      conv: [E, out, in, k, k].
      scale: [E, out]; batch norm's gamma.

    Returns:
      [E, out].
    """
    return scale.abs() * conv.flatten(2).norm(dim=2)


def _take(values: Tensor, index: Tensor, dim: int) -> Tensor:
    """Entries of a dimension, other ones for every environment: [E, ...], [E, m] -> [E, ...] with m in ``dim``."""
    shape = [1] * values.dim()
    shape[0], shape[dim] = index.shape
    places = index.reshape(shape).expand(*values.shape[:dim], index.shape[1], *values.shape[dim + 1 :])
    return values.gather(dim, places)


def cut(wide: Host, narrow: Host, params: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the best channels of every block, in their order, and what reads them.

    Args:
      wide, narrow: convolutional hosts of equal depth.
      params, buffers: of the wide ones, [E, P] and [E, N].

    Returns:
      those of the narrow ones.
    """
    rows, statistics = arena.split_blocks(wide, params), arena.split_buffers(wide, buffers)
    kept: Tensor | None = None
    cut_rows, cut_buffers = list[Tensor](), list[Tensor]()
    for number, (block, aim) in enumerate(zip(wide.blocks, narrow.blocks, strict=True)):
        own = block.layout.views(rows[number])
        if "conv" not in own:
            assert kept is not None
            parts = [_take(own["weight"], kept, 2), own["bias"]]
        else:
            filters = own["conv"] if kept is None else _take(own["conv"], kept, 2)
            worth, width = importance(own["conv"], own["norm.weight"]), aim.layout.params[0].shape[0]
            kept = worth.topk(width, dim=1).indices.sort(dim=1).values
            parts = [_take(part, kept, 1) for part in (filters, own["norm.weight"], own["norm.bias"])]
            held = block.buffer_layout.views(statistics[number])
            cut_buffers += [_take(held[name], kept, 1) for name in ("mean", "variance")]
        cut_rows += [part.flatten(1) for part in parts]
    return torch.cat(cut_rows, 1), torch.cat(cut_buffers, 1)


def narrowed(wide: State, fresh: State, hosts: tuple[Host, Host]) -> State:
    """A fresh state of the narrow host with what is left of the wide one, at the wide one's epoch."""
    params, buffers = cut(*hosts, wide.host.params, wide.buffers)
    host = ParamState(
        params=params, moments=torch.zeros_like(fresh.host.moments), steps=fresh.host.steps, batch_size=fresh.batch_size
    )
    snapshot = Snapshot(
        host=host,
        buffers=buffers,
        seeds=fresh.seeds,
        seed_buffers=fresh.seed_buffers,
        batch_size=fresh.batch_size,
    ).clone()
    return lock(fresh.replace(host=host, buffers=buffers, snapshot=snapshot, epoch=wide.epoch, rounds=wide.rounds))


def pairs(task: Task, widths: tuple[int, ...], depth: int = 2) -> list[tuple[Contender, Contender]]:
    """Wide and narrow static networks of equal depth, the narrow one half as wide."""
    shape, outputs = task.data.input_shape, task.data.num_classes
    return [
        (static(task, cnn_host(shape, outputs, depth, 2 * width)), static(task, cnn_host(shape, outputs, depth, width)))
        for width in widths
    ]


def play_pruned(wide: Contender, narrow: Contender, study: Study) -> Point:
    """Train the wide network for half of the epochs, prune it, train what is left for the rest; at its best rate."""
    begun, half = time.perf_counter(), study.epochs // 2
    first, second = (make_engine(each, study, study.rates) for each in (wide, narrow))
    policy = wide.policy(first.codec)
    state, early, before = advance(first, init(first, study), policy, half)
    state = narrowed(state, init(second, study), (wide.task.host, narrow.task.host))
    state, late, after = advance(second, state, policy, study.epochs - half)
    spent: Spent = before.plus(after)
    played = judged(second, state, torch.cat((early, late)), spent)
    named = Contender(f"{wide.name} pruned to {narrow.name}", PRUNED, narrow.task)
    return best(named, study, played, time.perf_counter() - begun)
