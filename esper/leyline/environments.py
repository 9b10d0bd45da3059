"""Choosing, joining and exchanging environments: a batch of states as a value, taken apart and put together.

``select`` takes some environments, ``concatenate`` puts batches behind each other, ``replace`` puts environments in the
place of others. All return locked states and leave their inputs as they are. An environment takes everything of its
own with it, its random key included: a copy draws the same numbers as its original until one of them decides otherwise.

Two fields belong to the run, not to an environment, and are the same in every row: ``order_key`` and ``rounds``, by
which environments that share their minibatches agree on them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esper.leyline.state import State, lock

OF_THE_RUN = ("order_key", "rounds")
"""Fields of a state that are the same in every row."""


def select(state: State, rows: Tensor) -> State:
    """Some environments of a state.

    Args:
      state: [E].
      rows: int64 [n], places in 0 to E - 1 in any order, also repeated; or bool [E]. At least one.

    Returns:
      state, batch [n]. Law: a step of the selection is the selection of the step.

    Raises:
      ValueError: rows of another kind, or none; one line.
    """
    places = _places("select", rows, state.batch_size[0])
    return lock(state[places])


def concatenate(states: Sequence[State]) -> State:
    """Batches of environments, one behind the other.

    Args:
      states: of one structure, dtype and device, and of one run: with the same ``order_key`` and ``rounds``. States of
        two runs are joined by giving one the other's: ``state.replace(order_key=..., rounds=...)``; or see ``replace``.

    Returns:
      state, batch [sum of E]. Law: concatenating the selections of all rows in order gives the state.

    Raises:
      ValueError: no states, or states that differ in more than their environments; one line.
    """
    if not states:
        raise ValueError("concatenate: no states; expected at least one")
    tables = [_leaves(state) for state in states]
    for number, table in enumerate(tables):
        _check_alike("concatenate", f"states[{number}]", tables[0], table)
    for name in OF_THE_RUN:
        for number, table in enumerate(tables):
            if not bool((table[name] == tables[0][name][:1]).all()):
                first, other = tables[0][name][0].tolist(), table[name].tolist()
                raise ValueError(
                    f"concatenate: states[{number}].{name} = {other}: expected {first} in every row, as in states[0]"
                )
    joined: State = torch.cat(list(states))  # type: ignore[assignment]
    return lock(joined)


def replace(state: State, rows: Tensor, other: State) -> State:
    """Put environments in the place of others.

    Args:
      state: [E].
      rows: int64 [n], n different places in 0 to E - 1; or bool [E], n of them True. At least one.
      other: [n]; environment i goes to the i-th place. Of the same structure, dtype and device.

    Returns:
      state, batch [E]. The other environments keep their bits. What belongs to the run goes on: ``order_key`` and
      ``rounds`` are those of ``state``.

    Raises:
      ValueError: rows of another kind, none, or repeated; another number of environments, or others that do not fit.
    """
    places = _places("replace", rows, state.batch_size[0])
    if places.unique().shape != places.shape:
        raise ValueError(f"replace: rows = {rows.tolist()}: expected every place once")
    if other.batch_size[0] != places.shape[0]:
        raise ValueError(f"replace: other has {other.batch_size[0]} environments; expected {places.shape[0]}, as rows")
    held, given = _leaves(state), _leaves(other)
    _check_alike("replace", "other", held, given)
    mixed = state.copy()
    mixed.update({path: held[path].index_copy(0, places, given[path]) for path in held if path not in OF_THE_RUN})
    return lock(mixed)


Path = str | tuple[str, ...]
"""Name of a leaf, or names from the outside in."""


def _leaves(state: State) -> dict[Path, Tensor]:
    return dict(state.items(include_nested=True, leaves_only=True))


def _places(place: str, rows: Tensor, num_envs: int) -> Tensor:
    """Rows as places, int64 [n]."""
    if rows.dim() != 1 or rows.dtype not in (torch.int64, torch.bool):
        kind = str(rows.dtype).removeprefix("torch.")
        raise ValueError(f"{place}: rows {kind} {list(rows.shape)}; expected int64 [n] or bool [{num_envs}]")
    if rows.dtype == torch.bool and rows.shape[0] != num_envs:
        raise ValueError(f"{place}: rows bool [{rows.shape[0]}]; expected bool [{num_envs}]")
    places = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
    if not places.shape[0]:
        raise ValueError(f"{place}: rows name no environment; expected at least one of {num_envs}")
    if not bool(((places >= 0) & (places < num_envs)).all()):
        raise ValueError(f"{place}: rows = {rows.tolist()}: expected 0 to {num_envs - 1}")
    return places


def _check_alike(place: str, name: str, first: dict[Path, Tensor], other: dict[Path, Tensor]) -> None:
    """Whether two states differ in nothing but their environments."""
    if first.keys() != other.keys():
        odd = sorted(map(_dotted, first.keys() ^ other.keys()))
        raise ValueError(f"{place}: {name} differs in its fields {', '.join(odd)}; expected the same fields")
    for path, leaf in other.items():
        found, expected = (_describe(each) for each in (leaf, first[path]))
        if found != expected:
            raise ValueError(f"{place}: {name}.{_dotted(path)} is {found}; expected {expected}")


def _describe(leaf: Tensor) -> str:
    shape = ", ".join(["E", *map(str, leaf.shape[1:])])
    return f"{str(leaf.dtype).removeprefix('torch.')} [{shape}] on {leaf.device}"


def _dotted(path: Path) -> str:
    return path if isinstance(path, str) else ".".join(path)
