"""What a run writes down of itself: its settings, every number in force, and what it ran on."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase

from esper.kasmina.structure import Structure
from esper.nissa.blueprint_table import BlueprintCost
from esper.nissa.sinks import write_text
from esper.runtime.collect import part_of
from esper.runtime.machine import VERSIONS, machine
from esper.runtime.resume import CONFIG
from esper.runtime.scene import Scene
from esper.runtime.train_settings import TrainSettings
from esper.utils.documents import to_json
from esper.version import __version__

FACTS = (CONFIG, "resolved.json", VERSIONS)
"""What a run was told, every number in force, and what it ran on."""


def write_facts(folder: Path, settings: TrainSettings, scenes: Sequence[Scene]) -> None:
    """Write down what is run, and on what; take back what came of it before.

    Raises:
      OSError: a file cannot be written.
    """
    for stale in ("evaluation.json", "report.html"):
        (folder / stale).unlink(missing_ok=True)
    device, backends = scenes[0].engine.data.train.inputs.device, [scene.engine.backend.name for scene in scenes]
    tables = (
        asdict(settings),
        {scene.rules.task: resolved(scene) for scene in scenes},
        versions() | machine(device, backends),
    )
    for name, table in zip(FACTS, tables, strict=True):
        write_text(folder / name, to_json(table, indent=2) + "\n")


def resolved(scene: Scene) -> dict[str, Any]:
    """Every number in force: structure, hyperparameters, rewards, and the names of host and blueprints.

    ``part`` is how many decisions of an episode lie between two moments at which a checkpoint may be written: so many
    steps a run that is killed repeats beyond what the interval of its checkpoints makes it repeat.
    """
    structure = scene.engine.structure

    def leaves(table: TensorDictBase) -> dict[str, Any]:
        return {str(name): value.tolist() for name, value in sorted(table.items())}

    config = {entry.name: getattr(structure.config, entry.name) for entry in fields(structure.config)}
    return {
        "host": {"name": structure.host.name, "parameters": structure.host.num_params},
        "blueprints": [blueprint.name for blueprint in structure.blueprints],
        "blueprint_costs": {name: list(cost) for name, cost in blueprint_costs(structure).items()},
        "backend": list(scene.engine.backend.describe()),
        "part": part_of(scene.engine.config.horizon),
        "data": scene.engine.data.record(),
        "config": config,
        "hypers": leaves(scene.engine.hypers),
        "rewards": leaves(scene.params),
    }


def blueprint_costs(structure: Structure) -> dict[str, BlueprintCost]:
    """What a seed of each blueprint costs in a host, at the dearest of the slots that take it."""
    host = sum(block.flops for block in structure.host.blocks)
    found = dict[str, BlueprintCost]()
    for number, blueprint in enumerate(structure.blueprints):
        places = [slot for slot in structure.slots if blueprint.suits(slot.reads, slot.acts, slot.is_bypass)]
        if places:
            work = max(blueprint.flops(slot.reads, slot.acts) for slot in places)
            found[blueprint.name] = BlueprintCost(int(structure.sizes[:, number].max()), 1 + work / host)
    return found


def versions() -> dict[str, str]:
    """What the run ran on."""
    packages = {name: version(name) for name in ("torch", "tensordict", "torchrl", "numpy")}
    return {"esper": __version__, **packages, "python": platform.python_version(), "machine": platform.machine()}
