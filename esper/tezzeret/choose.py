"""Which backend runs a structure: the table of choices, and the one place where all backends are known."""

import logging
from collections.abc import Callable

import torch

from esper.kasmina.structure import Structure
from esper.leyline.config import ConfigError, Determinism
from esper.tezzeret import eager, inductor, native, oracle
from esper.tezzeret.alone import alone
from esper.tezzeret.backend import Backend, BackendError
from esper.tezzeret.fallback import or_eager

logger = logging.getLogger("esper")

BUILDERS: dict[str, Callable[[Structure, torch.device], Backend]] = {
    "eager": eager.build,
    "inductor": inductor.build,
    "native": native.build,
    "oracle": oracle.build,
}
"""Builders by name; they raise ``BackendError`` where they cannot run a structure."""

PLAIN = ("eager", "oracle")
"""Backends without kernels of their own."""

CHOICES = ("auto", "eager", "inductor", "native")
"""What users can ask for; the oracle is for tests."""

AUTO: dict[tuple[str, torch.dtype], tuple[str, ...]] = {
    ("cpu", torch.float32): ("native", "inductor", "eager"),
    ("cpu", torch.float64): ("inductor", "eager"),
    ("cuda", torch.float32): ("inductor", "eager"),
    ("cuda", torch.float64): ("inductor", "eager"),
}
"""By device and dtype, the backends that ``auto`` tries, in order; on other devices it is eager."""


def build_backend(name: str, structure: Structure, device: torch.device, differentiable: bool = False) -> Backend:
    """Choose and build.

    Args:
      name: one of ``CHOICES``, or ``oracle``.
      structure: what is run.
      device: where.
      differentiable: whether derivatives are taken from outside; ``auto`` is eager then.

    Raises:
      BackendError: the backend cannot run this structure there, or give derivatives. ``auto`` goes on to the next
        one instead, with a line in the log.
      ConfigError: no such backend.
    """
    found = (
        _first(structure, device, differentiable) if name == "auto" else _named(name, structure, device, differentiable)
    )
    if found.name not in PLAIN:
        definition = eager.build(structure, device)
        found = or_eager(found, _strictly(definition, structure) if found.independent else definition)
    return _strictly(found, structure)


def _strictly(backend: Backend, structure: Structure) -> Backend:
    """The backend, environment by environment where that is asked for and not so already."""
    strict = structure.config.deterministic is Determinism.STRICT
    return alone(backend) if strict and not backend.independent else backend


def _named(name: str, structure: Structure, device: torch.device, differentiable: bool) -> Backend:
    if name not in BUILDERS:
        raise ConfigError(f"backend = {name!r}: expected {', '.join(CHOICES)}")
    if differentiable and name != "eager":
        raise BackendError(f"backend = {name!r}: gives no derivatives; with differentiable=True expected 'eager'")
    return BUILDERS[name](structure, device)


def _first(structure: Structure, device: torch.device, differentiable: bool) -> Backend:
    names = ("eager",) if differentiable else AUTO.get((device.type, structure.config.precision.dtype), ("eager",))
    reasons: list[str] = []
    for name in names[:-1]:
        try:
            return _because(BUILDERS[name](structure, device), reasons)
        except BackendError as reason:
            logger.info("esper: %s", reason)
            reasons.append(str(reason))
    return _because(BUILDERS[names[-1]](structure, device), reasons)


def _because(backend: Backend, reasons: list[str]) -> Backend:
    """The backend, whose description says why those before it cannot run the structure."""
    return backend._replace(describe=lambda: (*backend.describe(), *reasons))
