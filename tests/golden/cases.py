"""The golden cases: what is played, how it is built, and which numbers are compared.

``build``, ``seed_rows`` and ``leaves`` are the only places that know how an engine is made and where State keeps its
parameters.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import esper
from esper.engine import Engine
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.leyline.actions import BLENDS, NONE, Action, Blend, Op
from esper.leyline.config import Isolation, Precision, SampleOrder
from esper.leyline.events import Transition
from esper.leyline.stages import ACTIVE, Stage
from esper.leyline.state import State
from esper.runtime.tasks import named
from esper.tolaria import characters
from esper.tolaria.data import Dataset, Part
from esper.tolaria.digits import DIGITS_MEAN, DIGITS_PATH, DIGITS_STD
from esper.utils import rng

FOLDER = Path(__file__).parent
LENGTH = 14
"""Decisions of a trajectory."""

FOLD = {"host": 256, "seed": 64}
"""Numbers kept of a row of parameters: longer rows are summed with signs, so that every parameter counts."""

VALIDATION = 48
"""Validation samples kept of a task."""

SMALL: dict[str, Any] = {
    "blends": tuple(Blend),
    "batch_size": 16,
    "steps_per_epoch": 2,
    "val_samples": VALIDATION,
    "horizon": LENGTH,
    "min_training_epochs": 1,
    "min_improvement": -100.0,
    "min_contribution": -100.0,
    "min_gradient_ratio": 0.0,
    "blend_epochs": 2,
    "min_blending_epochs": 1,
    "embargo_epochs": 1,
    "snapshot_epochs": 1,
    "adam_epsilon": 1e-4,
    "isolation": Isolation.STRAIGHT_THROUGH,
}
"""Gates that let nearly every seed through. Adam's epsilon stands far above rounding: a parameter whose true gradient
is 0 (a bias that a softmax or a norm takes out again) would else be moved by the rounding of its gradient.
"""

ADAM = {"host_optimizer": "adam", "seed_optimizer": "adam"}
SGD = {"host_optimizer": "sgd", "seed_optimizer": "sgd"}


class GoldenRun(NamedTuple):
    """A trajectory: a task, its batch, and settings beside ``SMALL``."""

    name: str
    task: str
    num_envs: int
    settings: dict[str, Any]
    seed: int

    def file(self, precision: Precision) -> Path:
        """Where the trajectory is kept."""
        return FOLDER / f"{self.name}-{precision.value}.npz"


KINDS = {"digits_deep": CONV_BLUEPRINTS, "chars": TOKEN_BLUEPRINTS}
"""What could grow when the trajectories were recorded, where presets offer something else by now."""

SWEEP = (0.005, 0.01, 0.02, 0.03)
CASES = (
    GoldenRun("digits_sgd", "digits_v1", 6, SGD | {"host_lr": 0.01, "seed_lr": 0.01}, seed=1),
    GoldenRun(
        "digits_adam_augmented",
        "digits_v1",
        6,
        ADAM
        | {"sample_order": SampleOrder.INDEPENDENT, "crop_padding": 1, "mirror": True, "auto_advance": False}
        | {"host_lr": 0.005, "seed_lr": 0.003},
        seed=2,
    ),
    GoldenRun(
        "digits_deep_mixed",
        "digits_deep",
        4,
        {"slots": (0, 2, 4), "seed_optimizer": "adam", "host_lr": 0.01, "seed_lr": 0.003, "shadowing_epochs": 0}
        | {"loss_limit": 0.0, "min_history": 3, "loss_sigmas": 0.0, "loss_multiple": 1.0, "spikes_in_a_row": 1},
        seed=3,
    ),
    GoldenRun(
        "synthetic_sweep",
        "synthetic",
        4,
        SGD
        | {
            "slots": (0, 2),
            "sample_order": SampleOrder.INDEPENDENT,
            "host_lr": SWEEP,
            "alpha_target": 0.8,
            "host_clip": 2,
        },
        seed=4,
    ),
    GoldenRun("tokens_adam", "synthetic_tokens", 4, ADAM | {"host_lr": 0.02, "seed_lr": 0.005}, seed=5),
    GoldenRun(
        "tokens_sgd",
        "synthetic_tokens",
        6,
        SGD
        | {"slots": (0, 0), "sample_order": SampleOrder.INDEPENDENT, "auto_advance": False}
        | {"host_lr": 0.2, "seed_lr": 0.1},
        seed=8,
    ),
    GoldenRun("chars_adam", "chars", 3, ADAM | {"slots": (0, 0), "host_lr": 0.02, "seed_lr": 0.01}, seed=7),
)


def held_out(task: str, data: Dataset) -> Part:
    """The validation part as it was when the trajectories were recorded, before there was a test part.

    Of the digits it was a fifth, and of a text evenly spaced windows of the last tenth: now validation and test.
    """
    if task.startswith("digits"):
        with np.load(DIGITS_PATH) as archive:
            images, labels = archive["images"], archive["labels"].astype(np.int64)
        places = np.sort(np.argsort(labels, kind="stable")[::5])
        inputs = (torch.from_numpy(images[places]).float() / 16 - DIGITS_MEAN) / DIGITS_STD
        return Part(inputs.unsqueeze(1), torch.from_numpy(labels[places]))
    if task == "chars":
        text = characters.python_topics()
        tokens = characters.encode(text, characters.vocabulary_of(text, 96))
        windows = tokens[-int(len(text) * 0.1) :].unfold(0, 17, 16)
        kept = windows[torch.linspace(0, len(windows) - 1, 256).round().long()]
        return Part(kept[:, :-1], kept[:, 1:])
    return data.validation


def build(case: GoldenRun, precision: Precision) -> Engine:
    """The engine of a case."""
    task = named(case.task)
    task = task._replace(blueprints=KINDS.get(case.task, task.blueprints))
    data = task.data._replace(validation=held_out(case.task, task.data).take(slice(VALIDATION)))
    settings = {k: torch.tensor(v) if isinstance(v, tuple) and k == "host_lr" else v for k, v in case.settings.items()}
    return esper.make(
        task._replace(data=data),
        case.num_envs,
        backend="eager",
        **(SMALL | settings | {"precision": precision}),
    )


def digest(engine: Engine) -> np.ndarray:
    """Checksum of the training data; the text of ``chars`` is another with another CPython. uint8 [32]."""
    data = engine.data.train.inputs.contiguous().numpy().tobytes()
    return np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8)


def fold(row: Tensor, width: int) -> np.ndarray:
    """Sums of every ``width``-th number of [n], with fixed random signs, float64 [width]; padded where n < width."""
    count = row.numel()
    signs = 1 - 2 * (rng.bits(rng.key(count), (count,)) & 1)
    padding = torch.zeros(-count % width if count else width, dtype=torch.float64)
    return torch.cat((row.double() * signs, padding)).reshape(-1, width).sum(0).numpy()


def seed_rows(engine: Engine, state: State, flat: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Environment, slot and own numbers of every active seed, out of rows [E, Q] of the seeds' bank."""
    for env, slot in np.ndindex(*state.slots.stage.shape):
        if int(state.slots.stage[env, slot]) in ACTIVE:
            kind, blend = int(state.slots.blueprint[env, slot]), Blend(int(state.slots.blend[env, slot]))
            place = engine.structure.slots[slot]
            own = flat[env, place.blueprint_columns(kind)]
            gate = flat[env, place.gate_columns] if BLENDS[blend].gated else own[:0]
            yield env, slot, torch.cat((own, gate))


def leaves(engine: Engine, state: State) -> dict[str, np.ndarray]:
    """All that training moves, rows folded: name -> [E, ...] or [E, S, ...]; 0 where a slot holds no active seed."""
    moments = [f"moment{m}" for m in range(state.host.moments.shape[1])]
    host = {"params": state.host.params} | dict(zip(moments, state.host.moments.unbind(1), strict=True))
    out = {f"host.{name}": np.stack([fold(row, FOLD["host"]) for row in rows]) for name, rows in host.items()}
    out["buffers"] = np.stack([fold(row, FOLD["host"]) for row in state.buffers])
    out["host.steps"] = state.host.steps.numpy()
    moments = [f"moment{m}" for m in range(state.seeds.moments.shape[1])]
    seeds = {"params": state.seeds.params} | dict(zip(moments, state.seeds.moments.unbind(1), strict=True))
    for name, flat in seeds.items():
        out[f"seeds.{name}"] = np.zeros((*state.slots.stage.shape, FOLD["seed"]))
        for env, slot, row in seed_rows(engine, state, flat):
            out[f"seeds.{name}"][env, slot] = fold(row, FOLD["seed"])
    active = torch.isin(state.slots.stage, torch.tensor([int(stage) for stage in ACTIVE]))
    out["seeds.steps"] = torch.where(active, state.seeds.steps, 0).numpy()
    return out


def seen(state: State, event: Transition) -> dict[str, Tensor]:
    """What a step is compared by: floats and integers, [E] or [E, S]."""
    epoch, evaluation, slots = event.epoch, event.evaluation, state.slots
    return {
        "train_loss": epoch.loss,
        "train_accuracy": epoch.accuracy,
        "val_loss": evaluation.loss,
        "val_accuracy": evaluation.accuracy,
        "effect": evaluation.effect,
        "effect_error": evaluation.effect_error,
        "measured": evaluation.measured,
        "host_norm": epoch.health.host_norm,
        "seed_norm": epoch.health.seed_norm,
        "seed_ratio": epoch.health.seed_ratio,
        "during": event.life.before,
        "stage": slots.stage,
        "alpha": slots.alpha,
        "blueprint": slots.blueprint,
        "verdict": event.judgement.verdict,
    }


DRAWN = torch.tensor([1.0, 2.0, 1.5, -1.5, 2.0, -1.5])
"""Logits of the operations, WAIT to CHANGE_BLUEPRINT: seeds live long enough to see every stage."""


def draw(engine: Engine, state: State, seed: int) -> Tensor:
    """A legal action per environment, int64 [E]: the operation first, then its arguments."""
    mask, op = engine.mask(state), engine.codec.op
    legal = torch.stack([(mask & (op == int(each))).any(1) for each in Op], dim=1)
    keys = rng.fold_in(rng.key(seed), torch.arange(mask.shape[0]), state.rounds)
    drawn = rng.categorical(rng.fold_in(keys, 0), torch.where(legal, DRAWN, -torch.inf))
    chosen = mask & (op == drawn.unsqueeze(1))
    return rng.categorical(rng.fold_in(keys, 1), torch.where(chosen, 0.0, -torch.inf))


def words(engine: Engine, action: Tensor) -> np.ndarray:
    """Actions as operation, slot, blueprint and blend, int64 [E, 4]."""
    return np.array([tuple(map(int, engine.codec.decode(int(index)))) for index in action])


def encode(engine: Engine, row: np.ndarray, names: list[str]) -> Tensor:
    """The actions of ``words`` in this engine's codec, int64 [E]; ``names`` are the blueprints' at the recording."""
    known = engine.codec.blueprint_names

    def index(op: int, slot: int, kind: int, blend: int) -> int:
        return engine.codec.encode(Action(Op(op), slot, kind if kind == NONE else known.index(names[kind]), blend))

    return torch.tensor([index(*map(int, each)) for each in row])


def visited(during: np.ndarray, stage: np.ndarray) -> set[Stage]:
    """Stages in which slots were trained or left."""
    return {Stage(int(number)) for number in np.union1d(during, stage)}
