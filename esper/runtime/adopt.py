"""A further blueprint for an engine: between two steps, an engine and a state become others.

```python
engine, state = adopt(engine, state, blueprint)
interface = filled(interface, place, blueprint.name)
```

The second line is for a policy that knows blueprints by name: where its interface has free places
(``esper.tamiyo.free_places``), it goes on with the same weights.
"""

from dataclasses import replace
from typing import NamedTuple

from esper.engine import Engine
from esper.kasmina.blueprint import Blueprint
from esper.leyline.state import State
from esper.tezzeret.choose import build_backend
from esper.tolaria import adopting


class Adopted(NamedTuple):
    """How a run goes on.

    Attributes:
      engine: with the blueprint behind those that it had; of the same backend.
      state: [E].
    """

    engine: Engine
    state: State


def adopt(engine: Engine, state: State, blueprint: Blueprint) -> Adopted:
    """Take a further blueprint.

    Args:
      engine: as it is; it stays usable.
      state: [E].
      blueprint: fits at least one slot.

    Returns:
      see ``esper.tolaria.adopting.adopt`` for its laws; ``engine.codec`` has other numbers than before.

    Raises:
      ConfigError: no slot takes it, its name is taken, the engine's backend cannot run it (``BackendError``), or it is
        of a document whose form there is not valid.
    """
    structure, wider = adopting.adopt(engine.structure, state, blueprint)
    device = structure.sizes.device
    backend = build_backend(engine.backend.name, structure, device)
    if hasattr(blueprint.train, "document"):
        from esper.tezzeret.stages.admission import admit  # nothing else needs what it imports

        admit(structure, backend.name, device)
    return Adopted(replace(engine, structure=structure, backend=backend), wider)
