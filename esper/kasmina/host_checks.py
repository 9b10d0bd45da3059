"""The conformance check for hosts; import it from ``esper.kasmina.checks``."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina.host import Host, check_ties
from esper.kasmina.layout import Params
from esper.leyline.config import ConfigError
from esper.utils import rng
from esper.utils.documents import cause

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""How far results may differ that should be equal but for the order of sums."""


class HostError(ValueError):
    """A host that breaks its contract; one line with the host, what was found and what was expected."""


class _Rows(NamedTuple):
    """Parameters, buffers and inputs of n networks."""

    params: list[Params]
    buffers: list[Params]
    inputs: Tensor
    keys: Tensor


def check_host(host: Host, num_networks: int = 3, batch_size: int = 4) -> None:
    """Check that a host keeps its contract.

    Checked: ties, names, costs and buffers are well formed; every block gives the shape its site announces and the
    last one logits; all is finite, and the first loss on random targets is at most 1 nat above ln C; a block is pure,
    and without buffers the same in training and inference; neither networks nor (in inference) samples depend on each
    other, nor predictions of tokens on later tokens; every block receives a gradient; float64 works as well as
    float32. Inputs are N(0, 1), or uniformly random tokens.

    Args:
      host: what to check.
      num_networks: rows n, >= 2.
      batch_size: samples B, >= 2.

    Raises:
      HostError: the first contract that is broken, or what the host raised.
    """
    with told_as(HostError, "host", host):
        _check_all(host, num_networks, batch_size)


@contextmanager
def told_as(kind: type[ValueError], what: str, part: object) -> Iterator[None]:
    """Whatever a user's part raises in place of keeping its contract becomes an error of one kind, on one line."""
    try:
        yield
    except kind:
        raise
    except Exception as error:  # whatever a part's functions do
        name = getattr(part, "name", part)
        raise kind(f"{what} {name!r}: raised {cause(error)}; expected functions that keep the contract") from error


def _check_all(host: Host, num_networks: int, batch_size: int) -> None:
    _check_structure(host)
    for dtype in TOLERANCE:
        rows = _draw_rows(host, num_networks, batch_size, dtype)
        for train in (False, True):
            _check_shapes(host, rows, train, dtype)
        _check_purity(host, rows)
        logits = _run_host(host, rows, False)[-1]
        _check_loss(host, logits)
        _check_independence(host, rows, logits)
        _check_learning(host, rows)


def _require(host: Host, holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise HostError(f"host {host.name!r}: found {found}; expected {expected}")


def _check_structure(host: Host) -> None:
    try:
        check_ties(host)
    except ConfigError as error:
        raise HostError(str(error)) from None
    _require(host, host.num_outputs >= 2, f"{host.num_outputs} outputs", "at least 2")
    _require(host, host.num_params > 0, "no parameters", "at least one")
    _require(host, bool(host.blocks) and host.blocks[-1].site is None, "a site after the last block", "logits there")
    for index, block in enumerate(host.blocks):
        sound = isinstance(block.flops, int) and block.flops >= 0
        _require(host, sound, f"flops {block.flops!r} in block {index}", "an integer >= 0")
        drawn = [buffer.name for buffer in block.buffers if buffer.init != "constant"]
        _require(host, not drawn, f"buffers {drawn} of block {index} drawn at random", "constant initial buffers")
    _require(host, sum(block.flops for block in host.blocks) > 0, "a cost of 0", "the multiply-adds of a sample")


def _draw_rows(host: Host, count: int, samples: int, dtype: torch.dtype) -> _Rows:
    keys = rng.fold_in(rng.key(0), torch.arange(count))
    own = [s.layout.views(s.layout.init(rng.fold_in(keys, i), dtype)) for i, s in enumerate(host.blocks)]
    ties = [{tie.param.name: own[tie.block][tie.param.name] for tie in block.ties} for block in host.blocks]
    params = [mine | tied for mine, tied in zip(own, ties, strict=True)]
    buffers = [s.buffer_layout.views(s.buffer_layout.init(keys, dtype)) for s in host.blocks]
    shape = (count, samples, *host.input_shape)
    if host.takes_tokens:
        tokens = (rng.uniform(rng.key(1), shape) * host.num_outputs).to(torch.int64)
        return _Rows(params, buffers, tokens, rng.fold_in(keys, 1))
    return _Rows(params, buffers, rng.normal(rng.key(1), shape, dtype), rng.fold_in(keys, 1))


def _run_block(host: Host, rows: _Rows, index: int, train: bool, x: Tensor) -> tuple[Tensor, Params]:
    block, arguments = host.blocks[index], (rows.params[index], rows.buffers[index], x)
    return (
        block.train(*arguments, rows.keys if block.draws else None)
        if train
        else (block.infer(*arguments), rows.buffers[index])
    )


def _run_host(host: Host, rows: _Rows, train: bool) -> list[Tensor]:
    """Inputs and the outputs of all blocks."""
    features = [rows.inputs]
    for index in range(len(host.blocks)):
        features.append(_run_block(host, rows, index, train, features[-1])[0])
    return features


def _check_shapes(host: Host, rows: _Rows, train: bool, dtype: torch.dtype) -> None:
    x, form = rows.inputs, "training" if train else "inference"
    lead = tuple(x.shape[:2])
    for index, block in enumerate(host.blocks):
        x, new = _run_block(host, rows, index, train, x)
        place = f"in block {index} ({form})"
        announced = lead + block.site.shape if block.site else None
        if index == len(host.blocks) - 1:
            announced = lead + (host.input_shape if host.takes_tokens else ()) + (host.num_outputs,)
        _require(host, announced in (None, tuple(x.shape)), f"output {list(x.shape)} {place}", f"{announced}")
        _require(host, x.dtype == dtype, f"output dtype {x.dtype} {place}", f"{dtype}")
        _require(host, bool(torch.isfinite(x).all()), f"a non-finite output {place}", "finite numbers")
        shapes = {name: tuple(value.shape) for name, value in new.items()}
        wanted = {buffer.name: (lead[0], *(buffer.shape or (1,))) for buffer in block.buffers}
        _require(host, shapes == wanted, f"buffers {shapes} {place}", f"{wanted}")


def _check_loss(host: Host, logits: Tensor) -> None:
    lead = tuple(logits.shape[:-1])
    targets = (rng.uniform(rng.key(2), lead) * host.num_outputs).to(torch.int64)
    loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").reshape(lead[0], -1).mean(1)
    limit = math.log(host.num_outputs) + 1
    worst = float(loss.max())
    _require(host, worst <= limit, f"a first loss of {worst:.3g} nats", f"<= ln C + 1 = {limit:.3g}")


def _check_purity(host: Host, rows: _Rows) -> None:
    features = _run_host(host, rows, False)
    for index, block in enumerate(host.blocks):
        x = features[index]
        leaves = [x, *rows.params[index].values(), *rows.buffers[index].values()]
        copies = [leaf.clone() for leaf in leaves]
        trained, inferred = (_run_block(host, rows, index, train, x)[0] for train in (True, False))
        again = _run_block(host, rows, index, False, x)[0]
        kept = all(torch.equal(leaf, copy) for leaf, copy in zip(leaves, copies, strict=True))
        _require(host, kept, f"block {index} writing into its arguments", "pure functions")
        _require(host, torch.equal(inferred, again), f"block {index} giving two results", "pure functions")
        distance = float((trained - inferred).abs().max())
        same = bool(block.buffers) or block.draws or distance <= TOLERANCE[trained.dtype]
        found = f"block {index}, without buffers or draws, differing by {distance:.3g} between training and inference"
        _require(host, same, found, "one function")


def _take(rows: _Rows, networks: slice, samples: slice) -> _Rows:
    parts = [[{name: t[networks] for name, t in named.items()} for named in group] for group in rows[:2]]
    return _Rows(parts[0], parts[1], rows.inputs[networks, samples], rows.keys[networks])


def _check_independence(host: Host, rows: _Rows, logits: Tensor) -> None:
    every, first = slice(None), slice(0, 1)
    trained = _run_host(host, rows, True)[-1]
    pairs = {
        "networks that depend on each other": (_run_host(host, _take(rows, first, every), False)[-1], logits[:1]),
        "networks that depend on each other in training": (
            _run_host(host, _take(rows, first, every), True)[-1],
            trained[:1],
        ),
        "samples that depend on each other in inference": (
            _run_host(host, _take(rows, every, first), False)[-1],
            logits[:, :1],
        ),
    }
    if host.takes_tokens:
        early = host.input_shape[0] // 2
        changed = torch.cat((rows.inputs[:, :, :early], host.num_outputs - 1 - rows.inputs[:, :, early:]), dim=2)
        later = _run_host(host, rows._replace(inputs=changed), False)[-1]
        pairs["predictions that depend on later tokens"] = later[:, :, :early], logits[:, :, :early]
    for found, (actual, wanted) in pairs.items():
        close = torch.allclose(actual, wanted, rtol=0, atol=TOLERANCE[logits.dtype])
        _require(host, close, found, "independence")


def _check_learning(host: Host, rows: _Rows) -> None:
    leaves: list[Params] = []
    for block, named in zip(host.blocks, rows.params, strict=True):
        tied = {tie.param.name: leaves[tie.block][tie.param.name] for tie in block.ties}
        leaves.append({param.name: named[param.name].clone().requires_grad_() for param in block.params} | tied)
    logits = _run_host(host, rows._replace(params=leaves), True)[-1]
    loss = (logits * rng.normal(rng.key(4), tuple(logits.shape), logits.dtype)).sum()
    for index, block in enumerate(host.blocks):
        own = [leaves[index][param.name] for param in block.params]
        if own:
            grads = torch.autograd.grad(loss, own, allow_unused=True, materialize_grads=True, retain_graph=True)
            size = torch.stack([grad.flatten(1).abs().sum(1) for grad in grads]).sum(0)
            alive = bool(torch.isfinite(size).all()) and bool((size > 0).all())
            _require(host, alive, f"no finite gradient to block {index}", "one that is not zero in every network")
