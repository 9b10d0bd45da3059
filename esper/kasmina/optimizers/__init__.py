"""Optimizers on flat rows: one expression updates every network, each with its own numbers.

A module of this folder that defines ``OPTIMIZER`` is an optimizer; to add one is to add a file.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from esper.kasmina.optimizers.contract import Optimizer, Rates, decays
from esper.kasmina.optimizers.rates import clip_rows, schedule
from esper.leyline.config import ConfigError

__all__ = ["OPTIMIZERS", "Optimizer", "Rates", "clip_rows", "decays", "find_optimizer", "schedule"]


def _collect() -> dict[str, Optimizer]:
    """Name -> optimizer of every module here that has one, by name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [module.OPTIMIZER for module in modules if hasattr(module, "OPTIMIZER")]
    table = {optimizer.name: optimizer for optimizer in sorted(found, key=lambda optimizer: optimizer.name)}
    assert len(table) == len(found), f"two optimizers of one name among {[optimizer.name for optimizer in found]}"
    return table


OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(_collect())
"""Every optimizer by its name, in the order of names."""


def find_optimizer(name: str, place: str = "optimizer") -> Optimizer:
    """The optimizer of a name.

    Args:
      name: one of ``OPTIMIZERS``.
      place: what messages call it.

    Raises:
      ConfigError: unknown name; one line with the known ones.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"{place} = {name!r}: expected {' or '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]
