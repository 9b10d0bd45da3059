"""Conformance checks for third-party parts: run them in your own tests."""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host_checks import TOLERANCE, HostError, check_host, told_as
from esper.kasmina.site import Site
from esper.utils import rng

__all__ = ["BlueprintError", "HostError", "check_blueprint", "check_host"]


class BlueprintError(ValueError):
    """A blueprint that breaks its contract; one line with the blueprint, what was found and what was expected."""


class _Case(NamedTuple):
    """A blueprint between two sites."""

    blueprint: Blueprint
    source: Site
    target: Site
    is_bypass: bool
    starts_alive: bool

    @property
    def takes_tokens(self) -> bool:
        return self.source.kind == "tokens"


def check_blueprint(
    blueprint: Blueprint,
    site: Site,
    target: Site | None = None,
    num_networks: int = 3,
    batch_size: int = 4,
    starts_alive: bool = True,
) -> None:
    """Check that a blueprint keeps its contract at a site, or between two.

    Checked: it fits; its tensors are named apart and tile a row; its cost is a number; training and inference give
    the target's shape, the dtype and finite numbers, and buffers of their own shapes; it starts within
    ``identity_bound`` of the identity, or of 0 between two sites; some gradient reaches its parameters and its input,
    and, away from its start, every tensor of it; rows do not depend on each other, nor positions on later ones; float64
    works as well as float32. The features are |N(0, 1)|, as behind a relu, or uniformly random tokens.

    Args:
      blueprint: what to check.
      site: where it reads.
      target: where it acts; None: there.
      num_networks: rows n, >= 2.
      batch_size: samples B.
      starts_alive: whether gradients must flow from the start to parameters and input, in every network; False: to
        parameters, in some network (to none of them, and it never learns), and to the input away from the start. A
        seed that is 0 at first, and takes the place of the features, passes nothing on before it has learned.

    Raises:
      BlueprintError: the first contract that is broken, or what the blueprint raised.
    """
    case = _Case(blueprint, site, site if target is None else target, target is not None, starts_alive)
    with told_as(BlueprintError, "blueprint", blueprint):
        _check_all(case, num_networks, batch_size)


def _check_all(case: _Case, num_networks: int, batch_size: int) -> None:
    blueprint, site, target = case.blueprint, case.source, case.target if case.is_bypass else None
    _check_layout(case)
    for dtype in (torch.float32, torch.float64):
        keys = rng.fold_in(rng.key(0), torch.arange(num_networks))
        flat, x = blueprint.layout(site, target).init(keys, dtype), _features(case, num_networks, batch_size, dtype)
        for train in (True, False):
            y = _apply(case, flat, x, train)
            wanted = (num_networks, batch_size, *case.target.shape)
            _expect(case, tuple(y.shape) == wanted, f"output shape {list(y.shape)}", f"{list(wanted)}")
            _expect(case, y.dtype == dtype, f"output dtype {y.dtype}", f"the input's {dtype}")
            finite = bool(torch.isfinite(y).all())
            _expect(case, finite, "a non-finite output at initialisation", "finite numbers")
        distance = float((y if case.is_bypass else y - x).abs().max())
        bound = blueprint.identity_bound + 1e-5
        what = "|y|" if case.is_bypass else "|y - x|"
        _expect(case, distance <= bound, f"{what} = {distance:.3g} at initialisation", f"<= {bound:.3g}")
        _check_rows(case, flat, x)
        _check_time(case, flat, x)
        _check_gradients(case, flat, x)


def _expect(case: _Case, holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise BlueprintError(f"blueprint {case.blueprint.name!r}: found {found}; expected {expected}")


def _features(case: _Case, count: int, samples: int, dtype: torch.dtype) -> Tensor:
    shape = (count, samples, *case.source.shape)
    if case.takes_tokens:
        return (rng.uniform(rng.key(1), shape) * case.target.channels).long()
    return rng.normal(rng.key(1), shape, dtype).abs()


def _apply(case: _Case, flat: Tensor, x: Tensor, train: bool = False) -> Tensor:
    blueprint, sites = case.blueprint, (case.source, case.target)
    keys = rng.fold_in(rng.key(0), torch.arange(flat.shape[0]))
    held = blueprint.buffer_layout(*sites)
    named, buffers = blueprint.layout(*sites).views(flat), held.views(held.init(keys, flat.dtype))
    if not train:
        return blueprint.infer(named, buffers, x)
    y, new = blueprint.train(named, buffers, x, keys if blueprint.draws else None)
    shapes = {name: tuple(value.shape) for name, value in new.items()}
    wanted = {name: tuple(value.shape) for name, value in buffers.items()}
    _expect(case, shapes == wanted, f"buffers {shapes} after training", f"{wanted}")
    return y


def _check_layout(case: _Case) -> None:
    blueprint, source, target = case[:3]
    fits = blueprint.suits(source, target, case.is_bypass)
    _expect(case, fits, f"that it does not fit {source.kind!r} to {target.kind!r}", "a blueprint that does")
    names = [param.name for param in blueprint.params(source, target)]
    _expect(case, len(set(names)) == len(names), f"parameters {names}", "distinct names")
    size = blueprint.layout(source, target).size
    _expect(case, size > 0, "no parameters", "at least one: a seed that cannot learn cannot help")
    flops = blueprint.flops(source, target)
    _expect(case, isinstance(flops, int) and flops >= 0, f"flops {flops!r}", "an integer >= 0")
    drawn = [buffer.name for buffer in blueprint.buffers(source, target) if buffer.init != "constant"]
    _expect(case, not drawn, f"buffers {drawn} drawn at random", "constant initial buffers")


def _trained(flat: Tensor) -> Tensor:
    """Parameters away from their start, where a branch that ends in zeros shows nothing of what it does."""
    return flat + 0.1 * rng.normal(rng.key(3), tuple(flat.shape), flat.dtype)


def _check_rows(case: _Case, flat: Tensor, x: Tensor) -> None:
    flat = _trained(flat)
    for train in (True, False):
        together = _apply(case, flat, x, train)
        if train and case.blueprint.draws:
            continue
        alone = torch.cat([_apply(case, flat[i : i + 1], x[i : i + 1], train) for i in range(x.shape[0])])
        distance = float((alone - together).abs().max())
        near = distance <= TOLERANCE[flat.dtype]
        _expect(case, near, f"rows that differ by {distance:.3g} when alone", "independent rows")


def _check_time(case: _Case, flat: Tensor, x: Tensor) -> None:
    source, target = case.source.time_axis, case.target.time_axis
    source = 0 if case.takes_tokens and target is not None else source
    if source is None or target is None or case.source.shape[source] < 2:
        return
    flat, axis = _trained(flat), 2 + source
    early, top = case.source.shape[source] // 2, case.target.channels - 1 if case.takes_tokens else 1
    changed = torch.cat((x.narrow(axis, 0, early), top - x.narrow(axis, early, x.shape[axis] - early)), dim=axis)
    before, after = (_apply(case, flat, features).narrow(2 + target, 0, early) for features in (x, changed))
    distance = float((after - before).abs().max())
    found = f"positions that change by {distance:.3g} with later ones"
    _expect(case, distance <= TOLERANCE[flat.dtype], found, "positions that see only what came before")


def _check_gradients(case: _Case, flat: Tensor, x: Tensor) -> None:
    target = rng.normal(rng.key(2), (*x.shape[:2], *case.target.shape), flat.dtype)

    def weighed(rows: Tensor, features: Tensor) -> Tensor:
        return (_apply(case, rows, features, train=True) * target).sum()

    found = {"parameters": torch.func.grad(weighed)(flat, x)}
    if not case.takes_tokens:  # a bypass that ends in zeros passes nothing on before it has learned
        start = flat if case.starts_alive and not case.is_bypass else _trained(flat)
        found["input"] = torch.func.grad(weighed, argnums=1)(start, x)
    for name, grad in found.items():
        _expect(case, bool(torch.isfinite(grad).all()), f"a non-finite gradient to its {name}", "finite numbers")
        flows = grad.flatten(1).abs().sum(1) > 0
        alive = bool(flows.all() if case.starts_alive else flows.any())
        _expect(case, alive, f"a zero gradient to its {name}", "a gradient: a dead seed never learns")
    later = case.blueprint.layout(case.source, case.target).views(torch.func.grad(weighed)(_trained(flat), x))
    dead = [name for name, grad in later.items() if not bool(grad.any())]
    _expect(case, not dead, f"no gradient to {', '.join(dead)} away from its start", "tensors that can all learn")
