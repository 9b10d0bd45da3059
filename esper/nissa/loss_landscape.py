"""The loss around where networks stand: how it changes in random directions, and how strongly it is curved.

The loss is an argument: a function from parameters [n, P] of n networks to their losses [n], of which row i depends on
row i alone; the gradient of the sum is then every network's own. It is differentiated twice, so it must be given by a
definition that follows derivatives to any order.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from esper.utils import rng

Loss = Callable[[Tensor], Tensor]


class Curvature(NamedTuple):
    """The eigenvalue of the Hessian that is largest in magnitude."""

    eigenvalue: Tensor  # [n]
    residual: (
        Tensor  # [n]; |H v - eigenvalue v| of its unit vector, as a share of |eigenvalue|; small: it has converged
    )


def sharpness(loss: Loss, params: Tensor, key: Tensor, directions: int, scale: float) -> Tensor:
    """Mean change of the loss in random directions, [n].

    |loss(w + scale * noise) - loss(w)| / scale, the mean over directions; noise is standard normal, element by element.
    All directions are taken at once.

    Args:
      loss: of n networks.
      params: [n, P].
      key: int64 [2].
      directions: how many.
      scale: of the noise.
    """
    keys = rng.fold_in(key, torch.arange(directions, device=params.device))
    noise = rng.normal(keys, tuple(params.shape), params.dtype)
    moved = vmap(loss)(params + scale * noise)
    return (moved - loss(params)).abs().mean(0) / scale


def hessian_product(loss: Loss, params: Tensor, vector: Tensor) -> Tensor:
    """The Hessian of every network's loss times its vector, [n, P]; forward over reverse, no Hessian is formed."""

    def whole(point: Tensor) -> Tensor:
        return loss(point).sum()

    product: Tensor = jvp(grad(whole), (params,), (vector,))[1]
    return product


def curvature(loss: Loss, params: Tensor, key: Tensor, steps: int) -> Curvature:
    """The Hessian's eigenvalue of largest magnitude, by power iteration from a random vector.

    Args:
      loss: of n networks.
      params: [n, P].
      key: int64 [2].
      steps: products with the Hessian, at least 1.

    Returns:
      the Rayleigh quotient of the last vector, and its residual. Where the Hessian is 0: 0 and 0.
    """
    vector = _unit(rng.normal(key, tuple(params.shape), params.dtype))
    for _ in range(steps - 1):
        vector = _unit(hessian_product(loss, params, vector))
    product = hessian_product(loss, params, vector)
    value = (vector * product).sum(1)
    left = torch.linalg.vector_norm(product - value.unsqueeze(1) * vector, dim=1)
    return Curvature(value, torch.where(left == 0, 0.0, left / value.abs()))


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays one."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(length > 0, rows / torch.where(length > 0, length, 1.0), 0.0)
