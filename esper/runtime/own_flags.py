"""Arguments of ``esper.make`` that are settings of their own, and the flags by which a refusal names what was asked."""

from collections.abc import Mapping

from esper.tezzeret.backend import BackendError
from esper.utils.settings import Entry

OWN_NAMES = ("task", "num_envs", "horizon", "backend", "device", "deterministic", "precision")
OWN_FLAGS = {name: f"--{name.replace('_', '-')}" for name in OWN_NAMES}
"""Arguments of ``make`` that are settings of their own."""


def flags_of(error: BackendError, engine: Mapping[str, Entry], asked: Mapping[str, object]) -> str:
    """The flags that say what a backend refuses.

    Args:
      error: the refusal.
      engine: numbers of ``--engine``, as they were given.
      asked: of ``OWN_NAMES``, ``backend`` and what else was asked for.
    """
    flags = [f"{OWN_FLAGS['backend']} {asked['backend']}"]
    if error.setting in engine:
        flags.append(f"--engine {error.setting}={engine[error.setting]}")
    elif error.setting in asked:
        flags.append(f"{OWN_FLAGS[error.setting]} {asked[error.setting]}")
    return " with ".join(flags)
