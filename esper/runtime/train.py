"""The training command: PPO on a preset, in rounds, each a function of the policy before it and its number alone.

That is what makes an interrupted and resumed run end in the same bits: the state of a run between rounds is the
learner, nothing else. What a run leaves behind is described in ``esper.runtime.runs``.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from tensordict import TensorDictBase

from esper.leyline.actions import Op
from esper.nissa.progress import Progress, make_progress
from esper.nissa.sinks import METRICS, read_rows, require_tensorboard, write_text
from esper.runtime.compare import compare
from esper.runtime.interrupt import Stopped, stoppable, torch_draws_from, undisturbed
from esper.runtime.policies import load_run
from esper.runtime.report import Findings, write_report
from esper.runtime.runs import LATEST, Run, open_run, places, record
from esper.runtime.scene import build_scene, players_of
from esper.runtime.table import table
from esper.runtime.train_settings import TrainSettings
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.tamiyo.policy import PolicyConfig, build_policy
from esper.utils.settings import SettingsError

HELD_OUT = 1
"""Seed of the evaluation at the end: odd, as ``evaluate``'s default; training uses even ones."""

FEWEST = 6
"""Environments that an interval can be taken of."""


def train(settings: TrainSettings, out: TextIO = sys.stdout) -> Learner:
    """Train a policy.

    Args:
      settings: everything.
      out: where progress goes.

    Returns:
      the learner after its last round.

    Raises:
      SettingsError, SinkError, CheckpointError: the run directory holds another run, nothing to resume, or a setting
        is not allowed.
    """
    _check(settings)
    folder, source = places(settings)
    scene = build_scene(settings.rules(), settings.num_envs, settings.compile)
    env = EsperEnv(scene.engine, scene.mode, scene.params)
    sizes = PolicyConfig(settings.features, settings.lstm, value_scale=settings.value_scale)
    policy = build_policy(sizes, scene.engine.codec, len(scene.engine.columns), settings.seed)
    learner = Learner(policy, settings.ppo(), settings.rounds, settings.seed)
    run = open_run(folder, source, settings, scene, learner)
    progress = make_progress(settings.progress, "round", out)
    findings = Findings()
    try:
        with stoppable():
            _learn(settings, env, learner, run, progress)
            out.write(_time_split(read_rows(folder / METRICS)))
            if settings.eval_envs:
                findings = _evaluate(settings, run, progress, out)
    except Stopped as stopped:
        progress.close()
        done = load_run(folder / LATEST).table["done"]
        out.write(f"{stopped}: stopped after round {done}; --resume auto --out {folder} goes on\n")
    finally:
        run.metrics.close()
    with undisturbed():
        write_report(folder, findings)
    out.write(f"{folder / 'report.html'}\n")
    return learner


def _check(settings: TrainSettings) -> None:
    """What must be known before anything is built."""
    if 0 < settings.eval_envs < FEWEST:
        raise SettingsError(f"--eval-envs = {settings.eval_envs}: expected 0 (no evaluation) or an integer >= {FEWEST}")
    if settings.tensorboard:
        require_tensorboard()


def _learn(settings: TrainSettings, env: EsperEnv, learner: Learner, run: Run, progress: Progress) -> None:
    """All rounds that are left, each recorded whole or not at all."""
    collector = make_collector(env, learner.policy)
    batches, start, first = iter(collector), time.perf_counter(), learner.done
    try:
        while learner.done < settings.rounds:
            row = _round(settings, env, batches, learner)
            with undisturbed():
                record(run, learner, row)
            left = (time.perf_counter() - start) / (learner.done - first) * (settings.rounds - learner.done)
            progress.show(learner.done, settings.rounds, _line(row), left)
    finally:
        collector.shutdown()
        progress.close()


def _round(
    settings: TrainSettings, env: EsperEnv, batches: Iterator[TensorDictBase], learner: Learner
) -> dict[str, float]:
    """One episode of every environment, and what is learned from it."""
    number, begun = learner.done, time.perf_counter()
    env.next_seed, env.engine_seconds = round_seed(settings.seed, number), 0.0
    with torch_draws_from(round_seed(settings.seed, number)):
        batch = next(batches)
    collected = time.perf_counter()
    learned = learner.update(batch)
    ended = time.perf_counter()
    after = batch["next"]
    op = env.engine.codec.op[batch["action"]]
    row = {
        "round": number + 1,
        "return": float(after["reward"].sum(1).mean()),
        "final_accuracy": float(after["val_accuracy"][:, -1].mean()),
        "seed_params": float(after["seed_params"][:, -1].mean()),
        "refused": float(after["refused"].sum()),
        "rolled_back": float(after["rolled_back"].sum()),
        **{f"share_{kind.name.lower()}": float((op == int(kind)).float().mean()) for kind in Op},
        "seconds": ended - begun,
        "collect_seconds": collected - begun,
        "learn_seconds": ended - collected,
        "host_seconds": env.engine_seconds,
    }
    return row | learned


def round_seed(seed: int, number: int) -> int:
    """Seed of a round's environments and draws; training uses even numbers, held-out evaluation odd ones."""
    return 2 * (seed * 1_000_003 + number)


def _line(row: dict[str, float]) -> str:
    return (
        f"return {row['return']:7.2f}  accuracy {row['final_accuracy']:5.1f} %  "
        f"entropy {row['entropy']:5.2f}  kl {row['kl']:6.4f}  {row['seconds']:5.1f} s"
    )


def _time_split(rows: list[dict[str, Any]]) -> str:
    """What of a round's time the hosts did not take; the first round, which compiles, counts only if it is alone."""
    counted = rows[1:] or rows
    if not counted:
        return ""
    whole, hosts, learning = (sum(row[f"{name}seconds"] for row in counted) for name in ("", "host_", "learn_"))
    share, learned = 100 * (whole - hosts) / whole, 100 * learning / whole
    return (
        f"other than the hosts: {share:.1f} % of a round ({learned:.1f} % learning), "
        f"mean of {len(counted)} rounds of {whole / len(counted):.2f} s\n"
    )


def _evaluate(settings: TrainSettings, run: Run, progress: Progress, out: TextIO) -> Findings:
    """Play the learned policy and the baselines on held-out environments; write ``evaluation.json`` and the table."""
    scene = build_scene(settings.rules(), settings.eval_envs, settings.compile)
    players = players_of(scene, load_run(run.folder / LATEST), greedy=False)
    report, outcomes = compare(scene, players, HELD_OUT, progress.note)
    progress.close()
    write_text(run.folder / "evaluation.json", json.dumps(report, indent=2) + "\n")
    out.write("\n" + table(report))
    return Findings(report, tuple(outcomes), scene.engine.codec.blueprint_names)
