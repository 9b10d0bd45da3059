"""Columns: what is kept of every decision and of every episode.

A row of a step column holds the state before a decision, the decision, and what followed from it:

    observation    float32 [O]   what the policy saw
    action_mask    bool [A]      what it was allowed
    action         int64         what it chose
    probability    float32       of that choice under the policy that made it, exploration included; NaN where the
                                 policy draws and does not tell from what
    policy         int64         index into the manifest's ``policies``
    episode        int64         number of the episode, from 0 on, as in the manifest
    step           int64         decisions of the episode before this one
    reward         float32       of the epoch that followed
    terms          float32 [R]   what the reward is made of; the manifest's ``terms`` names them
    refusal        int64         why the action was not carried out, ``Refusal``
    val_accuracy   float32       pp, on the validation samples after the epoch; NaN where nothing was measured
    val_loss       float32       nats, likewise
    seed_params    float32       parameters in seeds after the epoch
    terminated     bool          the episode came to an end of its own, beyond which nothing can be earned
    truncated      bool          the episode was cut here, though more could be earned: bootstrap with the successor

What follows a step is the next row's observation and mask. Of an episode's last step it is in the episode columns,
which have a row for every episode:

    last_observation  float32 [O]  what a policy would have seen next
    last_mask         bool [A]     what it would have been allowed
    number            int64        of the environment: it and the seed decide all that is drawn
    seed              int64        of the environments
    length            int64        steps; the manifest counts them as well, and both must agree

Further columns of either kind may follow. Names, types and shapes of all are in the manifest; two sets of columns that
differ in any of these are not those of one dataset.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from esper.leyline.config import ConfigError

Per = Literal["step", "episode"]
"""What a column has a row for."""

SCHEMA = 1
"""Version of the columns' meaning and of the files' layout."""

Arrays = Mapping[str, np.ndarray]
"""Columns by name: [steps, ...] or [episodes, ...]."""


class EpisodeColumn(NamedTuple):
    """A column.

    Attributes:
      name: also of its file.
      per: what has a row.
      dtype: as NumPy writes it, little-endian: ``<f4``, ``|b1``.
      shape: of a row.
    """

    name: str
    per: Per
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))

    def __str__(self) -> str:
        """As a message shows it."""
        return f"{self.name} {self.dtype} {list(self.shape)} per {self.per}"


FLOAT, INTEGER, FLAG = "<f4", "<i8", "|b1"


def columns_for(
    observation: int, actions: int, terms: int, further: Sequence[EpisodeColumn] = ()
) -> list[EpisodeColumn]:
    """The columns of a dataset; sizes O, A and R.

    Raises:
      ConfigError: a further column has the name of another.
    """
    step = {
        "observation": (FLOAT, (observation,)),
        "action_mask": (FLAG, (actions,)),
        "action": (INTEGER, ()),
        "probability": (FLOAT, ()),
        "policy": (INTEGER, ()),
        "episode": (INTEGER, ()),
        "step": (INTEGER, ()),
        "reward": (FLOAT, ()),
        "terms": (FLOAT, (terms,)),
        "refusal": (INTEGER, ()),
        "val_accuracy": (FLOAT, ()),
        "val_loss": (FLOAT, ()),
        "seed_params": (FLOAT, ()),
        "terminated": (FLAG, ()),
        "truncated": (FLAG, ()),
    }
    episode = {
        "last_observation": (FLOAT, (observation,)),
        "last_mask": (FLAG, (actions,)),
        "number": (INTEGER, ()),
        "seed": (INTEGER, ()),
        "length": (INTEGER, ()),
    }
    found = [EpisodeColumn(name, "step", *kind) for name, kind in step.items()]
    found += [EpisodeColumn(name, "episode", *kind) for name, kind in episode.items()]
    names = [column.name for column in (*found, *further)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"episodes: column {twice}: stands twice; expected once")
    return [*found, *further]


def to_table(columns: Sequence[EpisodeColumn]) -> list[dict[str, Any]]:
    """Columns as the manifest lists them."""
    return [column._asdict() | {"shape": list(column.shape)} for column in columns]


def from_table(table: Sequence[Mapping[str, Any]]) -> list[EpisodeColumn]:
    """The columns that ``to_table`` listed."""
    return [EpisodeColumn(str(e["name"]), e["per"], str(e["dtype"]), tuple(map(int, e["shape"]))) for e in table]


def difference(mine: Sequence[EpisodeColumn], theirs: Sequence[EpisodeColumn]) -> str:
    """The first column in which two sets differ, in words; empty where they are the same."""
    ours, others = ({column.name: column for column in each} for each in (mine, theirs))
    for name, column in ours.items():
        if name not in others:
            return f"column {name} is not there"
        if others[name] != column:
            return f"column {others[name]}, not {column}"
    further = [name for name in others if name not in ours]
    return f"column {further[0]} is there beside those" if further else ""


def as_columns(columns: Sequence[EpisodeColumn], given: Arrays, per: Per) -> dict[str, np.ndarray]:
    """Arrays as their columns have them, checked.

    Raises:
      ConfigError: one is missing, is no column, has another shape, or another number of rows; or a number does not fit
        the column's type.
    """
    wanted = {column.name: column for column in columns if column.per == per}
    if set(given) != set(wanted):
        odd = sorted(set(given) ^ set(wanted))[0]
        raise ConfigError(f"episodes: column {odd}: expected exactly {', '.join(wanted)}")
    rows = {name: len(array) for name, array in given.items()}
    found = {}
    for name, column in wanted.items():
        array = np.asarray(given[name])
        if array.shape[1:] != column.shape or rows[name] != next(iter(rows.values())):
            raise ConfigError(f"episodes: column {column}: found shape {list(array.shape)}")
        found[name] = np.ascontiguousarray(_cast(column, array))
    return found


def _cast(column: EpisodeColumn, array: np.ndarray) -> np.ndarray:
    """An array as the column's type; narrowing of floating numbers aside, nothing may change."""
    cast = array.astype(column.dtype)
    floating = array.dtype.kind == "f" and cast.dtype.kind == "f"
    if not floating and not np.array_equal(cast.astype(array.dtype), array):
        raise ConfigError(f"episodes: column {column}: found {array.dtype} numbers that it does not hold")
    return cast
