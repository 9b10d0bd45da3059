"""Features of 16 bits and recomputing, measured on the definition: ``python -m bench.precision --out FILE``.

Losses over 50 SGD steps and test accuracies of ``digits`` at the end, bf16 (and float16) beside float32, in paired
environments that follow the task's script; the bytes that a minibatch keeps for its gradient; and bytes and time of a
deep host whose blocks are recomputed. ``--quick`` is a size that shows nothing but that it runs.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import esper
from bench.activations import bytes_kept, first_batch
from bench.draw import WorkloadConfig, draw_state
from esper.engine import Engine
from esper.kasmina.cnn import cnn_host
from esper.kasmina.slot_table import take_table
from esper.kasmina.transformer import transformer_host
from esper.leyline.learners import learners_of
from esper.leyline.state import State
from esper.runtime.rollout import rollout
from esper.runtime.scene import Rules, build_scene
from esper.runtime.scripts import play
from esper.runtime.task import Script, Task
from esper.runtime.tasks import chars, digits
from esper.tezzeret.batches import Batches, batch_at
from esper.tolaria.training import sample_indices
from esper.utils.documents import to_json
from esper.utils.files import replace_file
from esper.utils.resident import peak, resident, restart_peak
from esper.utils.stats import mean_interval

SEED, STEPS, SCRIPT = 1, 50, Script("conv8x2", 0, 0, None)
"""Environments of no training run; SGD steps of the losses; and what is grown, from the start."""


def losses(precision: str, envs: int) -> torch.Tensor:
    """Loss of every SGD step, [STEPS, E]: of hosts with fresh seeds of every kind and stage in half of their slots.

    Nothing is decided meanwhile, so that what differs is arithmetic alone.
    """
    engine = esper.make("digits", envs, backend="eager", precision=precision, steps_per_epoch=STEPS)
    state = draw_state(engine, WorkloadConfig("digits", envs))
    plan, learners, found = engine.backend.plan(take_table(state.slots), state.key.device), learners_of(state), []
    order = sample_indices(engine.config, state, engine.data.train.size)
    batches = Batches(*engine.data.train.samples, order, state.key, state.epoch)
    for number in range(STEPS):
        batch = batch_at(engine.structure, batches, number)
        learners, seen = engine.backend.minibatch_step(engine.hypers, plan, learners, state.slots.alpha, batch)
        found.append(seen.loss)
    return torch.stack(found)


def compare_losses(precision: str, envs: int) -> dict[str, float]:
    """How far losses are from those of float32, relative: of the mean over environments, and of single ones."""
    exact, rough = losses("float32", envs), losses(precision, envs)
    mean, single = (rough.mean(1) / exact.mean(1) - 1).abs(), (rough / exact - 1).abs()
    return {"worst_of_means": float(mean.max()), "worst_single": float(single.max()), "median": float(single.median())}


def accuracy(precision: str, envs: int, horizon: int) -> torch.Tensor:
    """Test accuracy at the end of an episode, [E]."""
    rules = Rules(horizon=horizon, precision=precision)
    scene = build_scene(rules, envs, "eager")
    return rollout(scene.engine, play(scene.engine, SCRIPT), SEED, scene.mode, scene.params)[1].test_accuracy


def compare_accuracies(precisions: tuple[str, ...], envs: int, horizon: int) -> dict[str, Any]:
    """Means with their 95 % intervals, and paired differences from float32."""
    exact = accuracy("float32", envs, horizon)
    found: dict[str, Any] = {"float32": mean_interval(exact)}
    for precision in precisions:
        rough = accuracy(precision, envs, horizon)
        within = abs(float(rough.mean() - exact.mean())) <= mean_interval(exact)[1]
        found[precision] = mean_interval(rough)
        found[f"{precision} - float32"] = mean_interval(rough - exact)
        found[f"{precision} within float32's interval"] = within
    return found


def deep() -> dict[str, Task]:
    """Hosts of many blocks, without slots."""
    text, images = chars(), digits()
    vocabulary, length = text.host.num_outputs, text.host.input_shape[0]
    return {
        "transformer 12x64": text._replace(host=transformer_host(vocabulary, length, 12, 4, 64)),
        "cnn 8-16-32-64 without pools": images._replace(host=cnn_host((1, 8, 8), 10, 4, 8, 0)),
    }


def one_minibatch(engine: Engine, state: State) -> dict[str, float]:
    """Bytes that a minibatch keeps, its peak above what was held, and its seconds (least of five)."""
    batch, learners, table = first_batch(engine, state), learners_of(state), take_table(state.slots)
    plan = engine.backend.plan(table, state.key.device)
    taken, most = [], 0
    for _ in range(5):
        restart_peak(state.key.device)
        before, begun = resident(state.key.device), time.perf_counter()
        engine.backend.minibatch_step(engine.hypers, plan, learners, state.slots.alpha, batch)
        taken.append(time.perf_counter() - begun)
        most = max(most, peak(state.key.device) - before)
    return {"kept_bytes": bytes_kept(engine, state, batch), "peak_bytes": most, "seconds": min(taken)}


def recomputing(envs: int) -> dict[str, Any]:
    """Deep hosts, whose blocks are kept and recomputed, side by side."""
    found: dict[str, Any] = {}
    for name, task in deep().items():
        rows = {}
        for again in (False, True):
            engine = esper.make(task, envs, backend="eager", slots=(), recompute=again, val_samples=8)
            rows["recomputed" if again else "kept"] = one_minibatch(engine, engine.init(SEED))
        ratios = {key: rows["recomputed"][key] / rows["kept"][key] for key in rows["kept"]}
        found[name] = rows | {"ratios": ratios}
    return found


def activations(envs: int) -> dict[str, Any]:
    """Bytes that a minibatch keeps, with active seeds in half of the slots, by precision."""
    found: dict[str, Any] = {}
    for shape, task in {"digits": digits(), "chars": chars()}.items():
        kept = {}
        for precision in ("float32", "bf16"):
            engine = esper.make(task, envs, backend="eager", precision=precision)
            state = draw_state(engine, WorkloadConfig(shape, envs))
            kept[precision] = bytes_kept(engine, state, first_batch(engine, state))
        found[shape] = kept | {"ratio": kept["bf16"] / kept["float32"]}
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file of the record, JSON")
    parser.add_argument("--quick", action="store_true", help="small")
    options = parser.parse_args()
    envs, horizon = (8, 3) if options.quick else (64, 0)
    record = {
        "environments": envs,
        "activations": activations(8),
        "recomputing": recomputing(2 if options.quick else 8),
        "losses": {precision: compare_losses(precision, envs) for precision in ("bf16", "float16")},
        "accuracy": compare_accuracies(("bf16", "float16"), envs, horizon),
    }
    print(json.dumps(record, indent=2))
    if options.out is not None:
        replace_file(options.out, to_json(record, indent=2).encode())


if __name__ == "__main__":
    main()
