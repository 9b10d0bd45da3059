"""The table of step functions. Every law in test_laws.py is checked for every row."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

import esper
from esper.engine import Engine, step
from esper.kasmina import arena, lifecycle, metrics
from esper.kasmina.refusals import legal
from esper.kasmina.slot_table import take_table
from esper.kasmina.structure import Structure, seed_sizes
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.kasmina.transformer import transformer_host
from esper.leyline.events import Epoch, Evaluation
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import learners_of
from esper.leyline.state import State
from esper.tamiyo.observation import observe
from esper.tezzeret.backend import Backend, Plan
from esper.tolaria.data import Dataset, Part
from esper.tolaria.evaluation import evaluate, measure, shapley_values
from esper.tolaria.governor import govern
from esper.tolaria.signals import remember_decision, update_signals
from esper.tolaria.training import train_epoch
from esper.tolaria.variations import own_hypers
from esper.utils import rng
from esper.utils.upload import upload


class StepArguments(NamedTuple):
    """Arguments for every step function, as they occur in one step of a random legal walk."""

    structure: Structure
    backend: Backend
    hypers: HyperParams
    data: Dataset
    state: State
    action: Tensor
    epoch: Epoch
    evaluation: Evaluation

    @property
    def plan(self) -> Plan:
        """As the backend makes it."""
        return self.backend.plan(take_table(self.state.slots), self.state.key.device)


def _fresh(arguments: StepArguments) -> Any:
    state = arguments.state
    return arena.init_seeds(arguments.structure, take_table(state.slots), learners_of(state), state.key, state.epoch)


def _written(arguments: StepArguments) -> Any:
    state = arguments.state
    fresh = upload(arena.list_seeds(arguments.structure, take_table(state.slots)), state.key.device)
    return arena.write_seeds(arguments.structure, learners_of(state), state.key, state.epoch, fresh)


def _evaluated(arguments: StepArguments) -> Any:
    table = take_table(arguments.state.slots)
    return evaluate(arguments.backend, arguments.hypers, arguments.state, table, arguments.plan, arguments.data)


def _shapley(arguments: StepArguments) -> Any:
    table = take_table(arguments.state.slots)
    return shapley_values(arguments.backend, arguments.hypers, arguments.state, table, arguments.plan, arguments.data)


def _trained(arguments: StepArguments) -> Any:
    return train_epoch(
        arguments.structure.config, arguments.backend, arguments.hypers, arguments.state, arguments.plan, arguments.data
    )


def _observed(arguments: StepArguments) -> Any:
    growth = seed_sizes(arguments.structure, arguments.state.slots).sum(1) / arguments.structure.host.num_params
    return observe(arguments.structure.config, arguments.state, growth, len(arguments.structure.blueprints))


def _governed(arguments: StepArguments) -> Any:
    active = take_table(arguments.state.slots).any_held
    return govern(arguments.structure, arguments.hypers, arguments.state, active, arguments.epoch, arguments.evaluation)


def _remembered(arguments: StepArguments) -> Any:
    accuracy = arguments.evaluation.accuracy
    _, result = lifecycle.apply_action(
        arguments.structure, arguments.hypers, arguments.state.slots, arguments.action, accuracy
    )
    return remember_decision(arguments.structure.config, arguments.state.signals, result)


CASES: dict[str, Callable[[StepArguments], Any]] = {
    "refusals": lambda s: lifecycle.refusals(s.structure, s.hypers, s.state.slots),
    "legal": lambda s: legal(s.structure, s.hypers, s.state.slots),
    "apply_action": lambda s: lifecycle.apply_action(
        s.structure, s.hypers, s.state.slots, s.action, s.evaluation.accuracy
    ),
    "tick": lambda s: lifecycle.tick(s.structure.config, s.hypers, s.state.slots, s.evaluation.accuracy),
    "record": lambda s: metrics.record(s.hypers, s.state.slots, s.epoch, s.evaluation),
    "seed_sizes": lambda s: seed_sizes(s.structure, s.state.slots),
    "update_signals": lambda s: update_signals(
        s.hypers, s.state.signals, s.epoch, s.evaluation, keep=s.evaluation.accuracy < 40
    ),
    "remember_decision": _remembered,
    "observe": _observed,
    "own_hypers": lambda s: own_hypers(s.hypers, s.state.context, s.data.variation),
    "init_seeds": _fresh,
    "write_seeds": _written,
    "train_epoch": _trained,
    "evaluate": _evaluated,
    "measure": lambda s: measure(s.backend, s.hypers, s.state, s.data.test),
    "shapley_values": _shapley,
    "govern": _governed,
    "step": lambda s: step(s.structure, s.backend, s.hypers, s.state, s.data, s.action),
}

ELEMENTWISE = ("refusals", "legal", "apply_action", "tick", "record", "seed_sizes", "update_signals", "observe")
"""Step functions without a plan: traced whole by torch.compile."""

BACKED = ("train_epoch", "evaluate", "measure", "shapley_values", "step")
"""Step functions that a backend runs."""

KEEPS_STRUCTURE = {
    "apply_action": lambda s: s.state.slots,
    "tick": lambda s: s.state.slots,
    "record": lambda s: s.state.slots,
    "update_signals": lambda s: s.state.signals,
    "remember_decision": lambda s: s.state.signals,
    "init_seeds": lambda s: learners_of(s.state),
    "write_seeds": lambda s: learners_of(s.state),
    "train_epoch": lambda s: s.state,
    "govern": lambda s: s.state,
    "step": lambda s: s.state,
}
"""Functions that change state, and the part of it they return first."""


def token_task(settings: dict[str, Any]) -> esper.Task:
    """A transformer over random tokens: slots after the embedding and after its block, all blueprints."""
    vocabulary, block = 7, 5
    tokens = (rng.uniform(rng.key(2), (90, block + 1)) * vocabulary).long()
    every = Part(tokens[:, :-1], tokens[:, 1:])
    parts = [every.take(which) for which in (slice(48), slice(48, 78), slice(78, None))]
    data = Dataset("random text", *parts, vocabulary)
    host = transformer_host(vocabulary, block, num_layers=1, num_heads=2, width=4)
    settings = settings | {"slots": (0, 0, 1), "decision_history": 2}
    return esper.Task("small text", host, TOKEN_BLUEPRINTS, data, settings)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of a nest of tuples and tensordicts, with their paths."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, TensorDictBase):
        for name in tree.keys():  # noqa: SIM118
            yield from leaves(tree.get(name), f"{path}.{name}")
    elif isinstance(tree, tuple):
        names = getattr(tree, "_fields", range(len(tree)))
        for name, value in zip(names, tree, strict=True):
            yield from leaves(value, f"{path}.{name}")


def take(tree: Any, rows: Tensor, num_envs: int) -> Any:
    """Index dimension 0 of every tensor whose dimension 0 is the environments."""
    if isinstance(tree, Tensor):
        return tree[rows] if tree.dim() and tree.shape[0] == num_envs else tree
    if isinstance(tree, TensorDictBase):
        return tree[rows] if tree.batch_size else tree.apply(lambda leaf: take(leaf, rows, num_envs))
    if isinstance(tree, tuple):
        values = [take(value, rows, num_envs) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree


def take_arguments(arguments: StepArguments, rows: Tensor) -> StepArguments:
    """The arguments of some environments only, in the order of ``rows``."""
    num_envs = arguments.structure.config.num_envs
    config = replace(arguments.structure.config, num_envs=len(rows))
    parts = {
        name: take(getattr(arguments, name), rows, num_envs)
        for name in ("hypers", "state", "action", "epoch", "evaluation")
    }
    return arguments._replace(structure=replace(arguments.structure, config=config), **parts)


OP_PREFERENCE = torch.tensor([1.0, 1.0, 2.0, -2.0, 1.0, -2.0])
"""Logits by operation: culling and changing rarely, so that seeds live long enough to reach every stage."""


def random_legal(engine: Engine, state: State, key: Tensor) -> Tensor:
    """A legal action per environment, drawn by its place."""
    return legal_by_keys(engine, state, rng.fold_in(key, torch.arange(state.batch_size[0])))


def legal_by_keys(engine: Engine, state: State, keys: Tensor) -> Tensor:
    """A legal action per environment: the operation first, then its arguments; keys [E, 2]."""
    mask = engine.mask(state)
    per_op = torch.nn.functional.one_hot(engine.codec.op, 6).to(mask.dtype)
    ops = (mask.double() @ per_op.double()) > 0
    keys = rng.fold_in(keys, state.rounds)
    op = rng.categorical(rng.fold_in(keys, 0), torch.where(ops, OP_PREFERENCE, -torch.inf))
    chosen = mask & (engine.codec.op == op.unsqueeze(1))
    return rng.categorical(rng.fold_in(keys, 1), torch.where(chosen, 0.0, -torch.inf))


def walk(engine: Engine, seed: int, length: int) -> list[StepArguments]:
    """Scenes along a random legal walk. The state of each is taken after the decision, so that fresh seeds occur."""
    state, steps = engine.init(seed), []
    for _ in range(length):
        action = random_legal(engine, state, rng.key(seed))
        after, event = engine.step(state, action)
        structure, hypers = engine.structure, engine.hypers
        slots, _ = lifecycle.apply_action(structure, hypers, state.slots, action, state.signals.val_accuracy)
        parts = (structure, engine.backend, hypers, engine.data, state.replace(slots=slots), action)
        arguments = StepArguments(*parts, event.epoch, event.evaluation)
        steps.append(arguments._replace(action=random_legal(engine, arguments.state, rng.key(seed + 1))))
        state = after
    return steps
