"""A network's card: what it is, what grew in it and when, what each seed contributes, and what it was made with."""

from typing import Any

from torch import nn

from esper.engine import Engine
from esper.kasmina.structure import seed_sizes
from esper.leyline.actions import Blend
from esper.leyline.stages import HELD, MERGED, Stage
from esper.leyline.state import State
from esper.runtime.run_facts import versions


def card_of(engine: Engine, state: State, env: int, network: nn.Module) -> dict[str, Any]:
    """What there is to say of an environment's network, JSON-able.

    Args:
      engine: of the state.
      state: [E].
      env: which.
      network: the same environment's, as it leaves.
    """
    structure, host = engine.structure, engine.structure.host
    return {
        "host": {"name": host.name, "parameters": host.num_params},
        "inputs": {"shape": list(host.input_shape), "tokens": host.takes_tokens},
        "outputs": host.num_outputs,
        "parameters": sum(value.numel() for value in network.parameters()),
        "epochs": int(state.epoch[env]),
        "seeds": [seed for slot in range(len(structure.slots)) if (seed := _seed(engine, state, env, slot))],
        "data": engine.data.record(),
        "precision": structure.config.precision.value,
        "versions": versions(),
    }


def _seed(engine: Engine, state: State, env: int, slot: int) -> dict[str, Any] | None:
    """What a slot holds, whether it reaches the output or not."""
    structure, slots = engine.structure, state.slots
    stage = Stage(int(slots.stage[env, slot]))
    if stage not in HELD:
        return None
    measured, place = bool(slots.measured[env, slot]), (env, slot)
    return {
        "slot": slot,
        "place": structure.slot_names[slot],
        "blueprint": structure.blueprints[int(slots.blueprint[place])].name,
        "stage": stage.name,
        "in_network": stage in MERGED and float(slots.alpha[place]) > 0,
        "alpha": float(slots.alpha[place]),
        "blend": Blend(int(slots.blend[place])).name,
        "germinated": int(state.epoch[env] - slots.age[place]),
        "parameters": int(seed_sizes(structure, slots)[place]),
        "contribution": float(slots.contribution[place]) if measured else None,
        "contribution_error": float(slots.contribution_error[place]) if measured else None,
    }
