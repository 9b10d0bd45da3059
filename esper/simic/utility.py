"""What growing is for, stated once: J = accuracy - price * ln(1 + added / host).

Accuracy is in percentage points; added and host count parameters; the price is what an e-fold of parameters must be
worth in points. Reports take the test part's accuracy. A reward may only see the validation's: every mode of
``rewards`` is a means, and ``RewardMode.UTILITY`` is J itself, paid out as it changes.
"""

import torch
from torch import Tensor

from esper.leyline.state import State


def growth(added: Tensor, host_params: int | Tensor) -> Tensor:
    """ln(1 + added / host): 0 where nothing was added; doubling a network costs ln 2.

    Args:
      added: parameters in seeds, any shape.
      host_params: parameters of the host, > 0.
    """
    return torch.log1p(added / host_params)


def own_price(price: Tensor, state: State) -> Tensor:
    """What an e-fold of parameters must be worth to each environment, [E], pp: a run's price times its own factor.

    Args:
      price: [] or [E].
      state: [E].
    """
    return price * state.context.price


def utility(accuracy: Tensor, added: Tensor, host_params: int, price: Tensor) -> Tensor:
    """J, pp.

    Args:
      accuracy: [E], pp; NaN where it was not measured, and so is J then.
      added: [E]; parameters in seeds.
      host_params: parameters of the host.
      price: [] or [E], pp per e-fold of parameters.
    """
    return accuracy - price * growth(added.to(accuracy.dtype), host_params)
