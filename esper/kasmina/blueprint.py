"""Blueprints: what kinds of seed there are. A tuple of these is the only registry."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from esper.kasmina.layout import Layout, Param, Params
from esper.kasmina.site import Site


class Blueprint(NamedTuple):
    """One kind of seed, for every site kind it fits.

    Attributes:
      name: lower-case identifier, unique in its tuple.
      kinds: site kinds it fits.
      params: site -> its named tensors.
      apply: (params, x) -> y with params name -> [n, *shape] and x, y [n, B, *site.shape]; pure, differentiable,
        rows independent of each other. Write it with ``esper.kasmina.layers``, or for one network and lift it with
        ``torch.func.vmap``.
      flops: site -> multiply-adds per sample of one forward pass.
      identity_bound: largest |apply(x) - x| at initialisation, in units of the input's RMS; 0 = exactly identity.
    """

    name: str
    kinds: frozenset[str]
    params: Callable[[Site], tuple[Param, ...]]
    apply: Callable[[Params, Tensor], Tensor]
    flops: Callable[[Site], int]
    identity_bound: float

    def layout(self, site: Site) -> Layout:
        """The flat row of this blueprint at a site."""
        return Layout(self.params(site))
