"""Blueprints: what kinds of seed there are. A tuple of these is the only registry."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from esper.kasmina.layout import Layout, Param, Params
from esper.kasmina.site import Site


class Blueprint(NamedTuple):
    """One kind of seed, for every pair of points it fits.

    A seed reads the features at its source and acts on those at its target. Where both are one point, its output takes
    the place of the features by alpha; otherwise it is a bypass, and its output is added to them by alpha.

    Attributes:
      name: lower-case identifier, unique in its tuple.
      fits: (source, target) -> whether it can be a seed between these sites; see ``suits``.
      params: (source, target) -> its trained tensors.
      train: (params, buffers, x, key) -> (y, new buffers), params and buffers name -> [n, *shape], x [n, B,
        *source.shape], y [n, B, *target.shape], key int64 [n, 2] if it ``draws``, else None; pure, differentiable, rows
        independent of each other. Write it with ``esper.kasmina.layers``, or for one network and lift it with
        ``torch.func.vmap``.
      infer: (params, buffers, x) -> y.
      flops: (source, target) -> multiply-adds per sample of one forward pass.
      identity_bound: largest |y - x| at initialisation, or |y| of a bypass, in units of the input's RMS.
      buffers: (source, target) -> tensors that are not trained; ``init`` must be "constant".
      draws: whether training draws random numbers.
      is_bypass: whether it acts at another point than it reads from, whose features may well have the same shape.
    """

    name: str
    fits: Callable[[Site, Site], bool]
    params: Callable[[Site, Site], tuple[Param, ...]]
    train: Callable[[Params, Params, Tensor, Tensor | None], tuple[Tensor, Params]]
    infer: Callable[[Params, Params, Tensor], Tensor]
    flops: Callable[[Site, Site], int]
    identity_bound: float
    buffers: Callable[[Site, Site], tuple[Param, ...]] = lambda source, target: ()
    draws: bool = False
    is_bypass: bool = False

    def suits(self, source: Site, target: Site, is_bypass: bool) -> bool:
        """Whether it can be a seed between two points with these sites, or at one point."""
        return self.is_bypass == is_bypass and self.fits(source, target)

    def layout(self, source: Site, target: Site | None = None) -> Layout:
        """The flat row of its trained tensors; without a target at one point."""
        return Layout(self.params(source, source if target is None else target))

    def buffer_layout(self, source: Site, target: Site | None = None) -> Layout:
        """The flat row of its buffers; without a target at one point."""
        return Layout(self.buffers(source, source if target is None else target))


def preserving(
    name: str,
    kinds: frozenset[str],
    params: Callable[[Site], tuple[Param, ...]],
    apply: Callable[[Params, Tensor], Tensor],
    flops: Callable[[Site], int],
    identity_bound: float,
    suits: Callable[[Site], bool] = lambda site: True,
) -> Blueprint:
    """A kind of seed that keeps the shape of one site, without buffers, the same in training and in inference.

    Args:
      name, identity_bound: as in ``Blueprint``.
      kinds: site kinds it fits.
      params, flops: of the site.
      apply: (params, x) -> y.
      suits: site -> whether it can be a seed there: what is normalised over a single number is constant.
    """
    return Blueprint(
        name=name,
        fits=lambda source, target: source == target and source.kind in kinds and suits(source),
        params=lambda source, target: params(source),
        train=lambda weights, buffers, x, key: (apply(weights, x), buffers),
        infer=lambda weights, buffers, x: apply(weights, x),
        flops=lambda source, target: flops(source),
        identity_bound=identity_bound,
    )


def bypassing(
    name: str,
    fits: Callable[[Site, Site], bool],
    params: Callable[[Site, Site], tuple[Param, ...]],
    apply: Callable[[Params, Tensor], Tensor],
    flops: Callable[[Site, Site], int],
) -> Blueprint:
    """A kind of bypass that starts at exactly 0, without buffers, the same in training and in inference.

    Args:
      name, fits, params, flops: as in ``Blueprint``.
      apply: (params, x) -> y.
    """
    return Blueprint(
        name=name,
        fits=fits,
        params=params,
        train=lambda weights, buffers, x, key: (apply(weights, x), buffers),
        infer=lambda weights, buffers, x: apply(weights, x),
        flops=flops,
        identity_bound=0.0,
        is_bypass=True,
    )
