"""Can a derivative tell what is worth growing? Scores of every (slot, blueprint) beside what growing it really brought.

Run from the repository's root: ``python -m bench.grow_by_gradient [--task digits] [--envs 32] [--warmup 5]
[--out FOLDER] [--quick]``.

Hosts train for some epochs. Then every environment is copied, once for every candidate and once for waiting; the
copies draw the same minibatches. A copy grows its one candidate to the end of the episode: it germinates, trains behind
the host, and is blended in, made permanent or removed as the shipped gates decide (with ``min_training_epochs`` 4, so
that every score is known before blending). Validation samples serve the life cycle and the scores; growing is judged on
the test samples, by what the copy has at the end over the one that waited.
"""

import argparse
import datetime
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import esper
from bench import ranking
from bench.ranking import Array
from bench.ranking_report import table, write
from esper.engine import Engine
from esper.kasmina.slot_table import take_table
from esper.leyline.actions import Action, Blend, Op
from esper.leyline.config import SampleOrder
from esper.leyline.environments import select
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage, is_in
from esper.leyline.state import State
from esper.runtime.tasks import named
from esper.tamiyo.scripted import finish
from esper.tezzeret.choose import CHOICES
from esper.tolaria.slopes import Samples, alpha_slopes, birth_norms, last_layer, losses_at

TASKS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("digits", "digits_v1", "digits_impaired", "digits_deep")},
    "chars": {"slots": (0,)},
}
"""Tasks, with settings of their own: the slots of ``chars`` are one place, of which the first stands for all."""
AGES = (1, 2, 4)
"""Epochs of TRAINING after which the slope is taken."""
BLOCK = 64
"""Environments whose derivatives are taken at once."""


class Scene(NamedTuple):
    """What is played, and what may grow."""

    engine: Engine
    candidates: tuple[Action, ...]

    @property
    def names(self) -> list[str]:
        """Slot and blueprint of every candidate."""
        kinds = self.engine.codec.blueprint_names
        return [f"{action.slot} {kinds[action.blueprint]}" for action in self.candidates]


def build(name: str, envs: int, backend: str, overrides: dict[str, Any]) -> Scene:
    """The task; every blueprint may grow in every slot that it fits."""
    settings = {"sample_order": SampleOrder.INDEPENDENT, "min_training_epochs": max(AGES), **overrides}
    engine = esper.make(named(name), envs, backend=backend, **settings)
    candidates = tuple(a for a in engine.codec.actions if a.op is Op.GERMINATE and a.blend == int(Blend.SIGMOID))
    return Scene(engine, candidates)


def play(scene: Scene, envs: int, warmup: int, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Scores and outcomes.

    Returns:
      scores by name, [N, C], higher is more promising; and what came of it: ``accuracy`` [N, C] in pp and ``loss``
      [N, C] in nats gained over waiting, ``fossilized`` [N, C], ``waited`` [N, 1] in pp.
    """
    engine, codec = scene.engine, scene.engine.codec
    state = engine.init(seed, torch.arange(envs))
    for _ in range(warmup):
        state, _ = engine.step(state, torch.zeros(envs, dtype=torch.int64))
    scores = score_births(scene, state)
    actions = torch.tensor([*map(codec.encode, scene.candidates), 0])
    state = select(state, torch.arange(envs).repeat_interleave(actions.shape[0]))
    state, _ = engine.step(state, actions.repeat(envs))
    policy = finish(codec)
    for age in range(1, engine.config.horizon - warmup):
        state, _ = engine.step(state, policy(engine.mask(state)))
        if age in AGES:
            scores[f"slope, epoch {age}"] = score_slopes(scene, state, envs)
        if age == max(AGES):
            scores[f"switched on, {age}"] = score_switches(scene, state, envs)
    accuracy, loss = (part.reshape(envs, -1) for part in judged(scene, state))
    kept = is_in(state.slots.stage, (Stage.FOSSILIZED,)).any(1).reshape(envs, -1)
    return scores, {
        "accuracy": (accuracy[:, :-1] - accuracy[:, -1:]).numpy(),
        "loss": (loss[:, -1:] - loss[:, :-1]).numpy(),
        "fossilized": kept[:, :-1].double().numpy(),
        "waited": accuracy[:, -1:].numpy(),
    }


def score_births(scene: Scene, state: State) -> dict[str, Array]:
    """Scores of seeds that are not there yet, [N, C]."""
    engine, structure = scene.engine, scene.engine.structure
    samples, columns, counts, sizes = _samples(engine), [], [], []
    for action in scene.candidates:
        columns.append(birth_norms(structure, engine.hypers, state, action, samples))
        layout = structure.slots[action.slot].row(action.blueprint)
        last = last_layer(layout)
        counts.append(last.stop - last.start)
        sizes.append(layout.size)
    norms = torch.stack(columns, dim=1).double().numpy()
    return {
        "parameters": np.broadcast_to(np.array(sizes, dtype=float), norms.shape),
        "norm at birth": norms,
        "norm, RMS": norms / np.sqrt(counts),
    }


def score_slopes(scene: Scene, state: State, envs: int) -> Array:
    """By how much the loss falls per unit of alpha, at alpha 0, [N, C]; the last copy waits and has no score."""
    engine = scene.engine

    def of(part: State, here: Tensor) -> Tensor:
        off = torch.zeros_like(part.slots.alpha)
        slopes = alpha_slopes(engine.structure, engine.hypers, part, off, _samples(engine))
        return -(slopes * here).sum(1)

    return _by_block(scene, state, envs, of)


def score_switches(scene: Scene, state: State, envs: int) -> Array:
    """By how much the loss falls if the seed is on at its target alpha, [N, C]: no derivative, for comparison."""
    engine = scene.engine

    def of(part: State, here: Tensor) -> Tensor:
        table, learners = take_table(part.slots), learners_of(part)
        off, on = (
            losses_at(engine.structure, engine.hypers, table, learners, alphas, _samples(engine))
            for alphas in (torch.zeros_like(part.slots.alpha), here * engine.hypers.alpha_target)
        )
        return off - on

    return _by_block(scene, state, envs, of)


def _by_block(scene: Scene, state: State, envs: int, of: Any) -> Array:
    """A function of (copies, their slots one-hot [n, S]), some copies at a time, as [N, C]."""
    slots = torch.tensor([*(action.slot for action in scene.candidates), 0])
    one = torch.nn.functional.one_hot(slots, scene.engine.config.num_slots).repeat(envs, 1)
    rows = torch.arange(state.batch_size[0]).split(BLOCK)
    found = torch.cat([of(select(state, part), one[part].to(state.slots.alpha.dtype)) for part in rows])
    return found.reshape(envs, -1)[:, :-1].double().numpy()


def _samples(engine: Engine) -> Samples:
    return engine.data.validation.inputs, engine.data.validation.targets


def judged(scene: Scene, state: State) -> tuple[Tensor, Tensor]:
    """Accuracy in pp and loss in nats on the test samples, [E] each."""
    found = scene.engine.test(state)
    return found.accuracy.double(), found.loss.double()


def assess(scores: dict[str, Array], gains: dict[str, Array]) -> dict[str, dict[str, ranking.Mean]]:
    """Every score's worth, the strong baseline's with them: the candidate's mean gain in the other environments."""
    every = {**scores, "elsewhere": ranking.elsewhere(gains["accuracy"])}
    return {name: ranking.assess(values, gains["accuracy"], gains["loss"]) for name, values in every.items()}


def study(name: str, envs: int, warmup: int, backend: str, seed: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """One task, JSON-able."""
    start = time.perf_counter()
    scene = build(name, envs, backend, TASKS.get(name, {}) | overrides)
    scores, gains = play(scene, envs, warmup, seed)
    kinds = {
        label: {"accuracy": float(a), "loss": float(b), "fossilized": float(c)}
        for label, a, b, c in zip(
            scene.names, *(gains[k].mean(0) for k in ("accuracy", "loss", "fossilized")), strict=True
        )
    }
    config = scene.engine.config
    return {
        "task": name,
        "envs": envs,
        "seed": seed,
        "backend": scene.engine.backend.name,
        "epochs": {"warmup": warmup, "horizon": config.horizon, "steps": config.steps_per_epoch},
        "waited": ranking.bootstrap(gains["waited"][:, 0])._asdict(),
        "candidates": kinds,
        "random": ranking.bootstrap(gains["accuracy"].mean(1))._asdict(),
        "best": ranking.bootstrap(gains["accuracy"].max(1))._asdict(),
        "scores": {label: {k: v._asdict() for k, v in row.items()} for label, row in assess(scores, gains).items()},
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Study the tasks and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="", help=f"presets with commas between; default {', '.join(TASKS)}")
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--warmup", type=int, default=5, help="epochs before anything grows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=CHOICES, default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/grow_by_gradient"))
    parser.add_argument("--quick", action="store_true", help="8 environments of short epochs: whether it runs")
    asked = parser.parse_args()
    names = asked.task.split(",") if asked.task else ["digits"] if asked.quick else list(TASKS)
    envs, overrides = (8, {"steps_per_epoch": 4, "horizon": 18}) if asked.quick else (asked.envs, {})
    studies = []
    for name in names:
        studies.append(study(name, envs, asked.warmup, asked.backend, asked.seed, overrides))
        print(table(studies[-1]), flush=True)
    for path in write(asked.out, f"{datetime.date.today().isoformat()}-grow-by-gradient", studies):
        print(path)


if __name__ == "__main__":
    main()
