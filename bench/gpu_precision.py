"""Rows of ``bench.gpu`` for features of 16 bits: steps in bf16 beside float32, from one state on one device."""

import torch

from bench.gpu_setup import TASKS, Empty, Figures, Row, Setup, bench_of, median_ms, repeats
from bench.gpu_steps import waiting
from esper.bench.case import Bench, mixed
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE
from esper.utils import resident

TARGET = 1.3
"""How many times as fast as float32 bf16 is meant to be."""

CLOSE = 2e-2
"""Relative; how far the mean loss of an epoch may be from that of float32."""


def narrow(shape: str, envs: int, setup: Setup) -> Figures:
    """Steps with half of the slots active, in both precisions; losses must agree, or there is no time."""
    exact = bench_of(shape, setup).engine(envs)
    rough = Bench(TASKS[shape](), setup.device, Precision.BF16, setup.backend, setup.small).engine(envs)
    state, losses, found = mixed(exact, 0.5, ACTIVE), {}, Figures(envs=envs)
    for name, engine in (("float32", exact), ("bf16", rough)):
        step = waiting(engine, state)
        _, event = step()
        losses[name] = float(event.epoch.loss.mean())
        resident.restart_peak(setup.device)
        taken = repeats(step, setup)
        found |= {f"{name}_ms": median_ms(taken), f"{name}_repeats": len(taken)}
        found[f"{name}_peak_bytes"] = resident.peak(setup.device)
        found[f"{name}_backend"] = list(engine.describe())
    gap = abs(losses["bf16"] / losses["float32"] - 1)
    if not gap <= CLOSE:
        raise Empty(f"wrong: loss {losses['bf16']:.6g}; float32 has {losses['float32']:.6g}, expected within {CLOSE}")
    speed = found["float32_ms"] / found["bf16_ms"]
    supported = setup.device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return found | {"loss_gap": gap, "speed": speed, "target": TARGET, "has_bf16": supported}


def precision_row(shape: str, envs: int, few: int, seconds: float) -> Row:
    """A row of ``narrow``: of ``envs`` environments, or ``few`` where sizes are small."""

    def run(setup: Setup) -> Figures:
        return narrow(shape, setup.size(envs, few), setup)

    return Row(f"bf16-{shape}-{envs}", f"steps of {envs:,} environments in bf16 beside float32", run, seconds)
