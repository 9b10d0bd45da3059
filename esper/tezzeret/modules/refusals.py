"""Modules that cannot be hosts for a reason that a graph would not show."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from torch import nn

from esper.leyline.config import ConfigError


def expect_known(place: str, module: nn.Module, frozen: Sequence[str]) -> None:
    """Check a module's parts by name.

    Args:
      place: what messages call the module.
      module: the whole.
      frozen: names of its submodules.

    Raises:
      ConfigError: a name is none of its submodules, or a norm depends on how many batches or which samples it saw.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"host: found a {type(module).__name__}; expected a torch.nn.Module")
    parts = dict(module.named_modules())
    for name in frozen:
        if not name or name not in parts:
            near = get_close_matches(name, parts, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{place}: frozen = {name!r}: no such submodule{hint}")
    for name, reason in _odd_norms(parts.items()):
        raise ConfigError(f"{place}: {name!r} {reason}")


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def _odd_norms(parts: Iterable[tuple[str, nn.Module]]) -> Iterable[tuple[str, str]]:
    for name, part in parts:
        if isinstance(part, (*BATCH_NORMS, *INSTANCE_NORMS)):
            is_instance = isinstance(part, INSTANCE_NORMS)
            if part.track_running_stats and part.momentum is None:
                yield name, "averages over all batches; expected a momentum that is a number"
            elif part.track_running_stats is is_instance:
                yield name, f"has track_running_stats = {part.track_running_stats}; expected {not is_instance}"
