"""Adam for the policy. On a GPU it is fused, and looks by itself whether a gradient is finite: the host does not."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

EPSILON = 1e-5


def build_adam(parameters: Iterable[Parameter], lr: float) -> torch.optim.Adam:
    """Adam for parameters on one device."""
    owned = list(parameters)
    on_gpu = owned[0].device.type == "cuda"
    return torch.optim.Adam(owned, lr=lr, eps=EPSILON, fused=on_gpu or None, capturable=on_gpu)


def step_if(optimizer: torch.optim.Adam, sound: Tensor) -> None:
    """A step if the gradient is finite, else none: parameters, moments and counts stay.

    Args:
      optimizer: from ``build_adam``.
      sound: bool []; whether it is.
    """
    if optimizer.defaults["fused"]:
        optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]  # as torch's own scaler tells it
        optimizer.step()
    elif bool(sound):
        optimizer.step()


def place_of(optimizer: torch.optim.Adam, moment: str, parameter: Tensor) -> torch.device:
    """Where a moment of a parameter belongs: beside it, but for a count of steps that the host keeps."""
    on_host = moment == "step" and not (optimizer.defaults["capturable"] or optimizer.defaults["fused"])
    return torch.device("cpu") if on_host else parameter.device
