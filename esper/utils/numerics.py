"""Elementary functions whose derivatives of every order are finite where the plain form's are 0 * inf = NaN; and
reductions whose bits do not depend on the number of rows.

Where the plain form is smooth, value and derivatives are its own. The branch that is not taken is computed on a
number that does no harm, so nothing infinite meets the zero that a selection sends to it.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def root(x: Tensor) -> Tensor:
    """sqrt(x), with 0 for the derivatives at 0.

    Args:
      x: any shape; >= 0, else NaN.

    Returns:
      like x. Numbers below the smallest normal one count as 0: the derivatives there overflow. With x a square (a
      norm, a second moment) this is the subgradient 0 of |.| at 0.
    """
    nought = x.abs() < torch.finfo(x.dtype).tiny
    return torch.where(nought, 0.0, torch.sqrt(torch.where(nought, 1.0, x)))


def share(part: Tensor, whole: Tensor) -> Tensor:
    """min(1, part / whole), with 0 for the derivatives wherever it is 1, be ``part`` infinite or ``whole`` 0.

    Args:
      part, whole: shapes that broadcast; >= 0.

    Returns:
      the broadcast shape; NaN where either is NaN.
    """
    full = part >= whole
    return torch.where(full, 1.0, torch.where(full, 1.0, part) / torch.where(full, 1.0, whole))


def by_row(reduce: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a reduction along dimension 1 makes of every row, with the same bits however many rows there are.

    A long sum to a single number is split among torch's threads, and then added in another order than in a row among
    others. So a single row is reduced as one of two.

    Args:
      reduce: [n, V] to [n, ...], row by row.
      x: [n, V].
    """
    return reduce(x) if x.shape[0] != 1 else reduce(x.expand(2, *x.shape[1:]))[:1]
