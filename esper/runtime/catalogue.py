"""The tasks command: every preset with its host, its slots and what can grow in them."""

from dataclasses import dataclass
from textwrap import wrap
from typing import Any, TextIO

from esper.kasmina.structure import find_points
from esper.runtime.tasks import SOURCES, TASKS, Task, named
from esper.utils.documents import to_json
from esper.utils.settings import setting
from esper.utils.terminal import output

WIDTH = 110
"""Columns of a line of prose."""


@dataclass(frozen=True)
class TasksSettings:
    """List the tasks: hosts, slots, blueprints, sizes."""

    task: str = setting("", "only this one; a preset or KIND:PATH; empty = all presets")
    json: bool = setting(False, "print one JSON object instead of text")


def show_tasks(settings: TasksSettings, out: TextIO | None = None) -> None:
    """Print what tasks there are.

    Raises:
      ConfigError, DatasetError: no such task, or its dataset does not load.
    """
    out = output(out)
    names = [settings.task] if settings.task else list(TASKS)
    facts = [describe(named(name)) for name in names]
    if settings.json:
        out.write(to_json({"tasks": facts, "sources": list(SOURCES)}) + "\n")
        return
    for fact in facts:
        out.write(_text(fact))
    if not settings.task:
        out.write(f"datasets on disk: {', '.join(f'{kind}:PATH' for kind in SOURCES)}\n")


def describe(task: Task) -> dict[str, Any]:
    """A task's facts, JSON-able: host, data, and per slot its site and the blueprints that fit it with their sizes."""
    slots = []
    for number, written in enumerate(task.settings.get("slots", ())):
        source, target = find_points(task.host, number, written)
        reads, acts = task.host.points[source], task.host.points[target]
        suiting = [blueprint for blueprint in task.blueprints if blueprint.suits(reads, acts, source != target)]
        fitting = {blueprint.name: blueprint.layout(reads, acts).size for blueprint in suiting}
        points = {"source": source, "target": target}
        slots.append({**points, "site": reads.kind, "shape": list(reads.shape), "blueprints": fitting})
    return {
        "name": task.name,
        "host": task.host.name,
        "parameters": task.host.num_params,
        "input_shape": list(task.data.input_shape),
        "data": task.data.record(),
        "classes": task.data.num_classes,
        "settings": {name: getattr(value, "value", value) for name, value in task.settings.items() if name != "slots"},
        "rewards": dict(task.rewards),
        "slots": slots,
    }


def _text(fact: dict[str, Any]) -> str:
    shape = "x".join(map(str, fact["input_shape"]))
    samples = " + ".join(f"{size:,} {part}" for part, size in fact["data"]["samples"].items())
    lines = [
        f"{fact['name']}",
        f"  host    {fact['host']}, {fact['parameters']:,} parameters",
        f"  data    {samples} samples of {shape}, {fact['classes']} classes",
        *wrap(fact["data"]["split"], WIDTH, initial_indent=" " * 10, subsequent_indent=" " * 10),
    ]
    for name, spread in fact["data"].get("variation", {}).items():
        drawn = ", ".join(f"{key} {value}" for key, value in spread.items())
        lines.append(f"  differs {name}, environment by environment: {drawn}")
    for number, slot in enumerate(fact["slots"]):
        grown = ", ".join(f"{name} {size:,}" for name, size in slot["blueprints"].items())
        place = "x".join(map(str, slot["shape"]))
        bypass = "" if slot["source"] == slot["target"] else f" to {slot['target']}"
        points = f"at {slot['source']}" if not bypass else f"from {slot['source']}{bypass}"
        lines.append(f"  slot {number}  {points}, {slot['site']} {place}: {grown}")
    return "\n".join([*lines, "", ""])
