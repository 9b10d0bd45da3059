"""Packages that sinks and progress need and that are not installed with Esper."""

import importlib
from typing import Any

from esper.nissa.sinks.record import SinkError


def optional_module(name: str, asked: str, package: str, extra: str) -> Any:
    """A module that may not be there.

    Args:
      name: of the module.
      asked: what asks for it, such as ``--sinks wandb``.
      package: that holds it.
      extra: of Esper's, that installs it.

    Raises:
      SinkError: it is not installed; one line with what asked for it and how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SinkError(f"{asked}: needs {package}; pip install 'esper-growth[{extra}]'") from None
