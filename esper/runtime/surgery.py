"""The surgery command: where a grown network's own layers can change, what that does, and the network that it gives."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TextIO

import torch

from esper.engine import Engine
from esper.leyline.config import ConfigError
from esper.leyline.environments import select
from esper.leyline.state import State
from esper.runtime.exported import bring
from esper.runtime.one_policy import OneSettings, one_policy
from esper.runtime.operate import operate, samples_of
from esper.runtime.rollout import rollout
from esper.runtime.surgery_report import Measured, listed, measured_row, tell, tell_list
from esper.runtime.written import KINDS, expect_place, write_network
from esper.tezzeret.surgery import Impossible, Log, Operation, Report, SurgeryRules, layers_of
from esper.tezzeret.surgery.history import history
from esper.tezzeret.surgery.layers import width_of
from esper.tezzeret.surgery.orders import RemoveFossil
from esper.tezzeret.surgery.places import candidates
from esper.tezzeret.surgery.spelling import FORMS, read_operations, spelled
from esper.tolaria import operating
from esper.tolaria.evaluation import measure
from esper.utils.documents import shown, to_json
from esper.utils.paths import user_path
from esper.utils.settings import Entry, SettingsError, setting
from esper.utils.terminal import output

ASKED = SurgeryRules(topology=True, surgeries_per_epoch=100, added_per_epoch=100, removed_per_epoch=100)
"""Where a person asks for operations by name, topology may change, and nothing sets their pace."""


@dataclass(frozen=True)
class SurgerySettings(OneSettings):
    """Change the layers of a grown or exported network; without --ops, list what can be done."""

    network: str = setting(
        "", "*.safetensors of esper export to operate on, instead of what an episode gives; the *.py beside it is run"
    )
    ops: str = setting("", f"operations with ; between, such as 'modify_layer(conv, width=8)': {', '.join(FORMS)}")
    limits: Mapping[str, Entry] = setting({}, f"constraints by name: {', '.join(SurgeryRules._fields)}")
    to: str = setting("", f"file to write; empty = none: {KINDS}")
    json: bool = setting(False, "print the card instead of text")


class Patient(NamedTuple):
    """A network to operate on: its engine, its state [1], and what a card says of where it comes from."""

    engine: Engine
    state: State
    told: dict[str, Any]


def perform(settings: SurgerySettings, out: TextIO | None = None) -> dict[str, Any]:
    """Bring a network, list what can be done or do what is asked for, and write what comes of it.

    Args:
      settings: everything.
      out: where the text or the card goes; None = standard output.

    Returns:
      the card: ``layers``, and ``places`` or ``operations`` with ``history``; and that of the file, if one is written.

    Raises:
      SettingsError, CheckpointError: a run, a file or a value is not allowed; or a file was to be written of operations
        of which one is refused, and none is.
      ConfigError: no such operation, or the host cannot be read.
    """
    path = expect_place(settings.to) if settings.to else None
    ops, rules = read_operations(settings.ops), limits_of(settings.limits)
    if path is not None and not ops:
        raise SettingsError(f"--to {settings.to}: nothing is to be done; expected --ops, or esper export")
    engine, state, told = _patient(settings)
    try:
        body = operating.anatomy(engine.structure)
    except Impossible as reason:
        raise ConfigError(str(reason)) from None
    card = told | {"layers": {name: width_of(body, each) for name, each in layers_of(body).items()}}
    if not ops:
        card["places"] = [listed(report) for report in tried(engine, state, rules)]
        output(out).write(to_json(card) + "\n" if settings.json else tell_list(card))
        return card
    engine, state, log, rows = done(engine, state, ops, rules)
    card |= {"operations": rows, "history": {name: each._asdict() for name, each in history(log).items()}}
    refused = [row for row in rows if not row["done"]]
    if path is not None and not refused:
        card = write_network(engine, state, 0, path, card)
    output(out).write(to_json(card) + "\n" if settings.json else tell(card))
    if path is not None and refused:
        raise SettingsError(f"--ops: {refused[0]['op']}: {refused[0]['reason']}; nothing is written")
    return card


def limits_of(given: Mapping[str, Entry]) -> SurgeryRules:
    """Constraints: ``ASKED`` with others in their place.

    Raises:
      SettingsError: no such constraint, or a value of another kind.
    """
    values = dict[str, Any]()
    for name, value in given.items():
        if name not in SurgeryRules._fields:
            raise SettingsError(f"--limits: {name}: expected one of {', '.join(SurgeryRules._fields)}")
        kind = type(getattr(ASKED, name))
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind or (kind is not bool and not value >= 0):  # type: ignore[operator]
            raise SettingsError(f"--limits: {name} = {shown(value)}: expected {_expected(kind)}")
        values[name] = value
    return ASKED._replace(**values)


def _expected(kind: type) -> str:
    return {bool: "true or false", int: "a whole number from 0"}.get(kind, "a number from 0")


def _patient(settings: SurgerySettings) -> Patient:
    if settings.network:
        if settings.run:
            raise SettingsError("--network and --run: expected one of them")
        rules = replace(settings.rules(None), task=settings.task)
        path = user_path(settings.network)
        engine, state, card = bring(path, rules, settings.seed, settings.backend, settings.device)
        origin = {name: card[name] for name in ("task", "policy", "seed", "env") if name in card}
        return Patient(engine, state, origin | {"network": settings.network})
    loaded, name, scene, policy = one_policy(settings)
    state, _ = rollout(scene.engine, policy, settings.seed, scene.mode, scene.params)
    told = {"task": scene.rules.task, "env": settings.env, "seed": settings.seed, "policy": name}
    told |= {"run": settings.run or None, "round": None if loaded is None else loaded.table["done"]}
    return Patient(scene.engine, select(state, torch.tensor([settings.env])), told)


def tried(engine: Engine, state: State, rules: SurgeryRules) -> list[Report]:
    """What would become of every operation that could be meant, each tried on the network as it is."""
    samples, structure = samples_of(engine), engine.structure
    found = [
        operating.operate(structure, state, op, samples, rules).report
        for op in candidates(operating.anatomy(structure))
    ]
    slots = [slot for slot in range(len(structure.slots)) if bool(operating.fossils(state, slot).any())]
    return found + [operate(engine, state, RemoveFossil(slot), rules).report for slot in slots]


class Done(NamedTuple):
    """What operations give: engine, state, all reports, and a row of each for a card."""

    engine: Engine
    state: State
    log: Log
    rows: list[dict[str, Any]]


def done(engine: Engine, state: State, ops: list[Operation], rules: SurgeryRules) -> Done:
    """Operate in order, and validate before and behind; what is refused changes nothing."""
    log, rows, before = Log(), list[dict[str, Any]](), _validated(engine, state)
    for op in ops:
        engine, state, report = operate(engine, state, op, rules, log)
        log, after = log.with_report(report), _validated(engine, state)
        rows.append(measured_row(spelled(op), report, before, after))
        before = after
    return Done(engine, state, log, rows)


def _validated(engine: Engine, state: State) -> Measured:
    found = measure(engine.backend, engine.hypers, state, engine.data.validation)
    return Measured(float(found.loss[0]), float(found.accuracy[0]))
