"""The table of rows of ``bench.gpu``, most important first, and the one that trains a policy."""

import time

from bench.gpu_precision import precision_row
from bench.gpu_profile import device, profile_row
from bench.gpu_rivals import baseline_row, cores_row, loop_row
from bench.gpu_setup import Figures, Row, Setup
from bench.gpu_steps import gate, learned_round, steps_row, walk
from esper.nissa.sinks import METRICS, read_rows
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings

TRAINED = {"digits": 4096, "chars": 512}
"""Environments that learn at once on the device, by task; the CPU beside it has ``BESIDE``."""

BESIDE = 64


def trained(setup: Setup) -> Figures:
    """``esper train`` on the device, and with fewer environments on the CPU: rounds a minute, and what was reached."""
    found: Figures = {}
    for task, envs in TRAINED.items():
        for place, count in ((str(setup.device), setup.size(envs, 4)), ("cpu", setup.size(BESIDE, 4))):
            folder = setup.out / f"train-{task}-{place.partition(':')[0]}-{count}"
            settings = TrainSettings(
                task=task,
                num_envs=count,
                rounds=setup.size(12, 1),
                horizon=setup.size(0, 2),
                device=place,
                backend=setup.backend,
                eval_envs=0,
                progress="off",
                out=str(folder),
                resume="auto",
                engine={"steps_per_epoch": 2, "batch_size": 8} if setup.small else {},
            )
            begun = time.perf_counter()
            train(settings)
            rows = read_rows(folder / METRICS)
            found[f"{task}-{place}-{count}"] = {
                "rounds": len(rows),
                "seconds": time.perf_counter() - begun,
                "rounds_per_minute": 60 / (sum(row["seconds"] for row in rows[1:] or rows) / len(rows[1:] or rows)),
                "val_accuracy": rows[-1]["val_accuracy"],
                "return": rows[-1]["return"],
            }
    return found


ROWS = (
    Row("device", "bandwidth and matrix rate of the device", device, 3),
    Row("gate", "training on the device equals the CPU's definition", gate, 15),
    steps_row("digits", 1024, 6, 15),
    baseline_row("digits", 1024, 6, 40),
    cores_row("digits", 1024, 6, 30),
    steps_row("cifar", 1024, 2, 30),
    loop_row("cifar", 1024, 40),
    profile_row("cifar", 1024, 2),
    steps_row("digits", 64, 5, 10),
    cores_row("digits", 64, 5, 15),
    profile_row("digits", 1024, 6),
    precision_row("digits", 1024, 6, 25),
    precision_row("cifar", 1024, 2, 40),
    precision_row("chars", 1024, 3, 30),
    Row("walk", "random legal decisions: what is compiled after the first", walk, 15),
    Row("round", "a round of PPO on the device", learned_round, 20),
    steps_row("chars", 1024, 3, 20),
    steps_row("digits", 4096, 7, 20),
    loop_row("digits", 1024, 40),
    cores_row("cifar", 1024, 2, 60),
    steps_row("chars", 64, 4, 10),
    steps_row("cifar", 64, 1, 10),
    baseline_row("digits", 64, 5, 25),
    steps_row("chars", 4096, 2, 25),
    steps_row("cifar", 4096, 2, 60),
    Row("train", "a policy is trained, on the device and on the CPU", trained, 400, default=False),
)
"""All rows."""
