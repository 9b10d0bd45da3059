"""The demonstration: the same hosts, on the same data in the same order, grown and not grown."""

import sys
import time
from typing import NamedTuple, TextIO

import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina.network import seed_sizes
from esper.leyline.stages import Stage
from esper.leyline.state import State
from esper.runtime.build import make
from esper.runtime.compilation import CompileMode
from esper.tamiyo.scripted import MaskPolicy, grow, wait
from esper.utils.stats import mean_interval


class Outcome(NamedTuple):
    """One episode of every environment under one policy."""

    accuracy: Tensor  # [E]; final validation accuracy, pp
    best: Tensor  # [E]; best validation accuracy, pp
    added: Tensor  # [E]; parameters in seeds at the end
    fossilized: Tensor  # [E]; permanent seeds at the end
    rollbacks: Tensor  # [E]
    seconds: float


def run_episode(engine: Engine, policy: MaskPolicy, seed: int, progress: TextIO | None = None) -> tuple[State, Outcome]:
    """Play one episode in every environment.

    Args:
      engine: what to play.
      policy: mask -> action.
      seed: of the environments.
      progress: where a line per five epochs goes, if anywhere.

    Returns:
      the final state and its summary.
    """
    start = time.perf_counter()
    state = engine.init(seed)
    for epoch in range(1, engine.config.horizon + 1):
        state, _ = engine.step(state, policy(engine.mask(state)))
        if progress is not None and (epoch % 5 == 0 or epoch == engine.config.horizon):
            accuracy = float(state.signals.val_accuracy.mean())
            elapsed = time.perf_counter() - start
            progress.write(
                f"  epoch {epoch:3d}/{engine.config.horizon}  accuracy {accuracy:5.1f} %  {elapsed:5.0f} s\n"
            )
            progress.flush()
    summary = Outcome(
        accuracy=state.signals.val_accuracy,
        best=state.signals.best_accuracy,
        added=seed_sizes(engine.network, state.slots).sum(1),
        fossilized=(state.slots.stage == int(Stage.FOSSILIZED)).sum(1),
        rollbacks=state.governor.rollbacks,
        seconds=time.perf_counter() - start,
    )
    return state, summary


def _row(name: str, outcome: Outcome) -> str:
    mean, half = mean_interval(outcome.accuracy)
    best, added, fossilized = (float(v.double().mean()) for v in (outcome.best, outcome.added, outcome.fossilized))
    return f"{name:<28}{mean:7.1f} ± {half:3.1f}{best:9.1f}{added:10.0f}{fossilized:12.2f}{outcome.seconds:9.0f}"


def demonstrate(
    num_envs: int = 32,
    seed: int = 0,
    blueprint: str = "bottleneck",
    compile: CompileMode = "auto",
    out: TextIO = sys.stdout,
) -> tuple[Outcome, Outcome]:
    """Train static and growing hosts on the digits and print a table.

    Args:
      num_envs: environments, each a host with its own initial numbers, >= 6.
      seed: of the environments.
      blueprint: what the growing policy grows.
      compile: see ``esper.make``.
      out: where the table goes.

    Returns:
      the static and the growing outcome.
    """
    engine = make("digits", num_envs, compile=compile)
    host = engine.network.host
    out.write(
        f"digits: {num_envs} hosts ({host.name}, {host.num_params} parameters), "
        f"{engine.config.num_slots} slots each, {engine.config.horizon} epochs of {engine.config.steps_per_epoch} SGD "
        f"steps, {torch.get_num_threads()} threads\n"
    )
    policies = {"static (wait)": wait(engine.codec), f"grown ({blueprint})": grow(engine.codec, blueprint)}
    outcomes = []
    for name, policy in policies.items():
        out.write(f"{name}\n")
        outcomes.append(run_episode(engine, policy, seed, out)[1])
    out.write(f"\n{'policy':<28}{'final accuracy %':>13}{'best %':>8}{'added':>10}{'fossilized':>12}{'seconds':>9}\n")
    for name, outcome in zip(policies, outcomes, strict=True):
        out.write(_row(name, outcome) + "\n")
    mean, half = mean_interval(outcomes[1].accuracy - outcomes[0].accuracy)
    out.write(
        f"\ngrowing adds {mean:.1f} ± {half:.1f} percentage points of final validation accuracy "
        f"(paired over {num_envs} environment seeds, 95 % confidence)\n"
    )
    return outcomes[0], outcomes[1]
