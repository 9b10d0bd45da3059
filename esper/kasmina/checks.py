"""Conformance checks for third-party parts: run them in your own tests."""

import torch
from torch import Tensor

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host_checks import TOLERANCE, HostError, check_host
from esper.kasmina.site import Site
from esper.utils import rng

__all__ = ["BlueprintError", "HostError", "check_blueprint", "check_host"]


class BlueprintError(ValueError):
    """A blueprint that breaks its contract; one line with the blueprint, what was found and what was expected."""


def check_blueprint(blueprint: Blueprint, site: Site, num_networks: int = 3, batch_size: int = 4) -> None:
    """Check that a blueprint keeps its contract at a site.

    Checked: it fits the site's kind; its tensors are named apart and tile a row; its cost is a number; ``apply``
    keeps shape, dtype and finiteness; it starts within ``identity_bound`` of the identity; some gradient reaches its
    parameters and its input; rows do not depend on each other, nor positions on later ones; float64 works as well as
    float32. The features are |N(0, 1)|, as behind a relu.

    Args:
      blueprint: what to check.
      site: where.
      num_networks: rows n, >= 2.
      batch_size: samples B.

    Raises:
      BlueprintError: the first contract that is broken.
    """
    _check_layout(blueprint, site)
    for dtype in (torch.float32, torch.float64):
        keys = rng.fold_in(rng.key(0), torch.arange(num_networks))
        flat = blueprint.layout(site).init(keys, dtype)
        x = rng.normal(rng.key(1), (num_networks, batch_size, *site.shape), dtype).abs()
        y = _apply(blueprint, site, flat, x)
        _expect(blueprint, y.shape == x.shape, f"output shape {list(y.shape)}", f"the input's {list(x.shape)}")
        _expect(blueprint, y.dtype == dtype, f"output dtype {y.dtype}", f"the input's {dtype}")
        _expect(blueprint, bool(torch.isfinite(y).all()), "a non-finite output at initialisation", "finite numbers")
        distance = float((y - x).abs().max())
        bound = blueprint.identity_bound + 1e-5
        _expect(blueprint, distance <= bound, f"|apply(x) - x| = {distance:.3g} at initialisation", f"<= {bound:.3g}")
        _check_rows(blueprint, site, flat, x)
        _check_time(blueprint, site, flat, x)
        _check_gradients(blueprint, site, flat, x)


def _expect(blueprint: Blueprint, holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise BlueprintError(f"blueprint {blueprint.name!r}: found {found}; expected {expected}")


def _apply(blueprint: Blueprint, site: Site, flat: Tensor, x: Tensor) -> Tensor:
    return blueprint.apply(blueprint.layout(site).views(flat), x)


def _check_layout(blueprint: Blueprint, site: Site) -> None:
    _expect(blueprint, site.kind in blueprint.kinds, f"kinds {sorted(blueprint.kinds)}", f"{site.kind!r} among them")
    names = [param.name for param in blueprint.params(site)]
    _expect(blueprint, len(set(names)) == len(names), f"parameters {names}", "distinct names")
    size = blueprint.layout(site).size
    _expect(blueprint, size > 0, "no parameters", "at least one: a seed that cannot learn cannot help")
    flops = blueprint.flops(site)
    _expect(blueprint, isinstance(flops, int) and flops >= 0, f"flops {flops!r}", "an integer >= 0")


def _trained(flat: Tensor) -> Tensor:
    """Parameters away from their start, where a branch that ends in zeros shows nothing of what it does."""
    return flat + 0.1 * rng.normal(rng.key(3), tuple(flat.shape), flat.dtype)


def _check_rows(blueprint: Blueprint, site: Site, flat: Tensor, x: Tensor) -> None:
    flat = _trained(flat)
    together = _apply(blueprint, site, flat, x)
    alone = torch.cat([_apply(blueprint, site, flat[i : i + 1], x[i : i + 1]) for i in range(x.shape[0])])
    distance = float((alone - together).abs().max())
    _expect(
        blueprint, distance <= TOLERANCE[x.dtype], f"rows that differ by {distance:.3g} when alone", "independent rows"
    )


def _check_time(blueprint: Blueprint, site: Site, flat: Tensor, x: Tensor) -> None:
    if site.time_axis is None or site.shape[site.time_axis] < 2:
        return
    flat, axis = _trained(flat), 2 + site.time_axis
    early = site.shape[site.time_axis] // 2
    changed = torch.cat((x.narrow(axis, 0, early), 1 - x.narrow(axis, early, x.shape[axis] - early)), dim=axis)
    before, after = (_apply(blueprint, site, flat, features).narrow(axis, 0, early) for features in (x, changed))
    distance = float((after - before).abs().max())
    found = f"positions that change by {distance:.3g} with later ones"
    _expect(blueprint, distance <= TOLERANCE[x.dtype], found, "positions that see only what came before")


def _check_gradients(blueprint: Blueprint, site: Site, flat: Tensor, x: Tensor) -> None:
    leaf, source = flat.clone().requires_grad_(), x.clone().requires_grad_()
    target = rng.normal(rng.key(2), tuple(x.shape), x.dtype)
    loss = (_apply(blueprint, site, leaf, source) * target).sum()
    grads = torch.autograd.grad(loss, (leaf, source), allow_unused=True)
    for name, grad in zip(("parameters", "input"), grads, strict=True):
        _expect(blueprint, grad is not None, f"no gradient to its {name}", "a differentiable path")
        assert grad is not None
        _expect(blueprint, bool(torch.isfinite(grad).all()), f"a non-finite gradient to its {name}", "finite numbers")
        alive = bool((grad.flatten(1).abs().sum(1) > 0).all())
        _expect(blueprint, alive, f"a zero gradient to its {name}", "a gradient: a dead seed never learns")
