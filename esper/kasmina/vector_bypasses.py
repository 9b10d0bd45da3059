"""Blueprints for bypasses that read all of a sample at once: multi-layer perceptrons, from vectors or whole maps.

``mlp_bypass``: ``layers`` of (linear, relu), then linear, the last at 0. Parameters: (I + 1) h of the first layer with
I inputs, (h + 1) h of each further one, (h + 1) K of the last with K outputs. A source is read as it is: what a host
gives is about as large as the normalised inputs, and a norm over a sample would take its contrast away.
"""

from itertools import pairwise

import torch
from torch import Tensor

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.bypass_blueprints import PROBE, takes_vectors
from esper.kasmina.layers import linear
from esper.kasmina.layout import Param, Params, zero_affine
from esper.kasmina.site import Site
from esper.kasmina.transformer import affine, apply_affine
from esper.leyline.config import ConfigError


def mlp_bypass(hidden: int = 16, layers: int = 1) -> Blueprint:
    """A multi-layer perceptron to logits, from a vector or from a map, flattened; ``mlp16x1``.

    Args:
      hidden: units h of a layer, >= 1.
      layers: hidden layers, >= 1.

    Raises:
      ConfigError: a value out of range.
    """
    if hidden < 1 or layers < 1:
        raise ConfigError(f"mlp_bypass hidden = {hidden}, layers = {layers}: expected at least 1 of both")

    def widths(source: Site) -> list[int]:
        return [torch.Size(source.shape).numel(), *[hidden] * layers]

    def params(source: Site, target: Site) -> tuple[Param, ...]:
        sizes = widths(source)
        rows = [affine(f"layer{layer}", sizes[layer + 1], sizes[layer]) for layer in range(layers)]
        return *(row for pair in rows for row in pair), *zero_affine("head", target.channels, hidden)

    def apply(params: Params, x: Tensor) -> Tensor:
        rows = x.flatten(2)
        for layer in range(layers):
            rows = torch.relu(apply_affine(params, f"layer{layer}", rows))
        return linear(rows, params["head.weight"], params["head.bias"])

    def flops(source: Site, target: Site) -> int:
        sizes = [*widths(source), target.channels]
        return sum(into * out for into, out in pairwise(sizes))

    return Blueprint(
        name=f"mlp{hidden}x{layers}",
        fits=lambda source, target: source.kind in ("conv", "vector") and takes_vectors(target),
        params=params,
        train=lambda params, buffers, x, key: (apply(params, x), buffers),
        infer=lambda params, buffers, x: apply(params, x),
        flops=flops,
        identity_bound=0.0,
        is_bypass=True,
    )


MLP8, MLP16, MLP32 = (mlp_bypass(hidden) for hidden in (8, 16, 32))

VECTOR_BYPASSES = (PROBE, MLP8, MLP16, MLP32)
"""From vectors, or flattened maps, to logits, by size."""
