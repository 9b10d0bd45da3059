"""The training command for algorithms that learn from recorded episodes: a round is some updates, nothing is played.

What a run leaves behind is that of ``esper.runtime.train``, and ``offline.json``: what the policy would earn, as
recorded episodes tell, before it has played anything.
"""

import math
import time
from contextlib import closing
from typing import Any, TextIO

import torch

from esper.nissa.anomalies import anomalies, observe, told_of
from esper.nissa.progress import Progress, make_progress
from esper.nissa.sinks import METRICS, read_rows
from esper.runtime.build import find_device
from esper.runtime.feeds import run_operations
from esper.runtime.fingerprints import LEARNER
from esper.runtime.interrupt import Stopped, Watch, watched
from esper.runtime.outlets import Outlets
from esper.runtime.policies import policies_of
from esper.runtime.policy_checkpoint import learner_tensors, load_run
from esper.runtime.report import Findings, write_report
from esper.runtime.resume import Origin, again
from esper.runtime.run_evaluation import evaluate_run
from esper.runtime.runs import Run, abandon, open_run, places, record, release, settle
from esper.runtime.scene import Scene, build_scene, expect_numbers_for
from esper.runtime.start_from import start_from
from esper.runtime.train import check
from esper.runtime.train_settings import TrainSettings
from esper.simic.episodes.dataset import Episodes
from esper.simic.offline.fitted import fitted_value
from esper.simic.offline.judging import judge
from esper.simic.offline.learner import OfflineLearner, build_objective, held_out_losses
from esper.simic.offline.windows import OfflineData, offline_data
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.interface import Interface, PolicyNetwork, to_table
from esper.tamiyo.networks import build_policies
from esper.utils import rng
from esper.utils.documents import json_ready, shown, to_json
from esper.utils.failpoints import reach
from esper.utils.fingerprint import link, row_fingerprints
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError
from esper.utils.terminal import output

JUDGED = 0x0FF3
"""Folded into the seed for the resamples of an estimate."""

OFFLINE = "offline.json"

DRAWS = 200
"""Resamples for the interval of a round's estimate."""


def train_offline(settings: TrainSettings, out: TextIO | None = None) -> OfflineLearner:
    """Train a policy on recorded episodes.

    Args:
      settings: everything; ``algorithm`` is one of ``ALGORITHMS``.
      out: where progress goes; None = standard output.

    Returns:
      the learner after its last round; of a dry run, as it would start.

    Raises:
      SettingsError, SinkError, CheckpointError: as ``train``.
      EpisodesError: the dataset cannot be read, or there is nothing in it to learn from.
      Stopped: asked to stop by a signal; the last whole round is kept, and the report written.
    """
    check(settings)
    out, config = output(out), settings.offline_config()
    folder, source = places(settings)
    device = find_device(settings.device, "--device")
    scene = _scene(settings, device)
    interface = scene.engine.interface
    episodes = _episodes(settings, interface, source)
    data = offline_data(episodes, settings.seed, config.gamma, config.window, config.held_out)
    learner = _learner(settings, interface, device)
    if settings.start_from and source is None:
        start_from(settings, learner.policy, interface)
    out.write(_told_of(episodes, data))
    if settings.dry_run:
        out.write(f"{folder}: nothing written\n")
        return learner
    with watched() as watch:
        run = open_run((folder, source), settings, [scene], interface, learner)
        run.table["dataset_digest"] = episodes.digest
        try:
            run.tell(run_operations(settings, run.folder, [scene], out))
            with (
                closing(Outlets(run.folder, fence=run.saver.lock.check)) as outlets,
                run.operations("run", settings.rounds, task=settings.task, algorithm=settings.algorithm),
            ):
                _work(settings, data, learner, (run, outlets), (watch, out))
        except SettingsError:
            if source is None and learner.done == 0:
                abandon(run)
            raise
        finally:
            release(run)
    return learner


def _scene(settings: TrainSettings, device: torch.device) -> Scene:
    """The one task, and whether what will be asked for at the end is there."""
    if len(settings.rules()) > 1 or settings.room_for or settings.demonstrations or settings.record:
        raise SettingsError(
            f"--algorithm = {settings.algorithm!r}: learns from the records of one task; expected one --task, and "
            "none of --room-for, --demonstrations and --record"
        )
    scene = build_scene(settings.rules()[0], settings.num_envs, settings.backend, device)
    policies_of(scene, None, greedy=False)
    expect_numbers_for(scene, settings.eval_envs, "--eval-envs")
    return scene


def _episodes(settings: TrainSettings, interface: Interface, source: Origin | None) -> Episodes:
    """The dataset, if it is one of this task, with this reward, and the one that the run began with."""
    if not settings.dataset:
        raise SettingsError(f"--algorithm = {settings.algorithm!r}: expected --dataset, a directory of esper generate")
    episodes, place = Episodes.open(user_path(settings.dataset)), f"--dataset {settings.dataset}"
    facts = episodes.manifest.facts
    for name in ("task", "reward"):
        if facts.get(name) != getattr(settings, name):
            there, here = shown(facts.get(name)), shown(getattr(settings, name))
            raise SettingsError(f"{place}: its {name} is {there}; expected {here}, or another --{name}")
    if facts.get("interface") != json_ready(to_table(interface)):
        raise SettingsError(f"{place}: its policies saw or said something else than this task shows and takes")
    before = None if source is None else load_run(source.path).table.get("dataset_digest")
    if before is not None and before != episodes.digest:
        raise SettingsError(f"{place}: not the episodes that this run began with; expected those, or another run")
    return episodes


def _learner(settings: TrainSettings, interface: Interface, device: torch.device) -> OfflineLearner:
    """A fresh learner."""
    config = settings.offline_config()
    sizes = ActorCriticConfig(settings.features, settings.lstm, settings.head, config.value_scale)
    (policy,) = build_policies(PolicyNetwork(settings.policy_network), sizes, [interface], settings.seed)
    policy = policy.to(device)
    objective = build_objective(settings.algorithm, policy, config, sizes, interface, settings.seed)
    return OfflineLearner(policy, objective, config, settings.seed)


def _told_of(episodes: Episodes, data: OfflineData) -> str:
    """A line on what is learned from."""
    shares = ", ".join(f"{name} {count}" for name, count in episodes.manifest.by_policy.items())
    return (
        f"{episodes.folder}: {len(episodes)} episodes ({shares}), {episodes.steps} decisions; "
        f"{len(data.taught)} windows to learn from, {len(data.held_out)} episodes held out\n"
    )


def _work(
    settings: TrainSettings,
    data: OfflineData,
    learner: OfflineLearner,
    kept: tuple[Run, Outlets],
    ends: tuple[Watch, TextIO],
) -> None:
    """All rounds, what records say, the evaluation and the report; the report also of a run that is stopped."""
    (run, outlets), (watch, out) = kept, ends
    progress = make_progress(settings.progress, "round", out)
    findings, stopped = Findings(), None
    try:
        _learn(settings, data, learner, run, (progress, watch))
        settle(run)
        if len(data.held_out):
            judged = judgement(settings, data, learner, watch)
            outlets.write(run.folder / OFFLINE, to_json(judged, indent=2) + "\n")
            out.write(judgement_line(judged))
        if settings.eval_envs:
            with run.operations("evaluate", learner.done, environments=settings.eval_envs):
                findings = evaluate_run(settings.rules(), settings, kept, progress, ends)
    except Stopped as asked:
        stopped = asked
        progress.close()
        out.write(f"{asked}: stopped after round {learner.done}; {again(run.folder)} goes on\n")
    finally:
        settle(run)
    write_report(run.folder, findings, outlets.write)
    out.write(f"{run.folder / 'report.html'}\n")
    if stopped is not None:
        raise stopped


def _learn(
    settings: TrainSettings, data: OfflineData, learner: OfflineLearner, run: Run, ends: tuple[Progress, Watch]
) -> None:
    """All rounds that are left, each recorded whole or not at all."""
    progress, watch = ends
    start, first = time.perf_counter(), learner.done
    before = read_rows(run.folder / METRICS)
    row: dict[str, Any] = before[-1] if before else {}
    memory, _ = anomalies(before)
    try:
        while learner.done < settings.rounds:
            with run.operations("round", learner.done + 1):
                row = _round(settings, data, learner, (watch, row))
                memory, found = observe(memory, row)
                row |= told_of(found)
                record(run, learner, row)
            for anomaly in found:
                progress.note(anomaly.line)
            left = (time.perf_counter() - start) / (learner.done - first) * (settings.rounds - learner.done)
            progress.show(learner.done, settings.rounds, _line(learner, row), left)
    finally:
        progress.close()


def _round(
    settings: TrainSettings, data: OfflineData, learner: OfflineLearner, looked: tuple[Watch, dict[str, Any]]
) -> dict[str, Any]:
    """A round, and how the policy stands after it on the episodes that are held out; with the row before."""
    (watch, before), begun = looked, time.perf_counter()
    device = next(learner.policy.parameters()).device

    def look() -> None:
        watch.check()
        reach("minibatch")

    learned = learner.update(len(data.taught), lambda numbers: data.taught_windows(numbers).to(device), look)
    told: dict[str, Any] = {"round": learner.done, "return": math.nan, **learned}
    if len(data.held_out):
        batch = data.whole(data.held_out).to(device)
        told |= {f"held_out_{name}": value for name, value in held_out_losses(learner.objective, [batch]).items()}
        key = rng.fold_in(rng.key(settings.seed), JUDGED, learner.done)
        found = judge(learner.policy, batch, settings.lstm, learner.config.gamma, key, DRAWS)
        told["estimated_return"] = math.nan if found is None else found.value
        told["effective_episodes"] = 0.0 if found is None else found.effective
    seconds = time.perf_counter() - begun
    held = row_fingerprints({name: value.reshape(1, -1) for name, value in learner_tensors(learner).items()})
    times = {"seconds": seconds, "learn_seconds": seconds, "collect_seconds": 0.0}
    times |= {"host_seconds": 0.0, "validation_seconds": 0.0}
    return told | times | {LEARNER: link(before.get(LEARNER, ""), *held)}


def _line(learner: OfflineLearner, row: dict[str, Any]) -> str:
    """A round as the progress shows it."""
    told = "  ".join(f"{name.replace('_', ' ')} {row[name]:.4g}" for name in learner.objective.told)
    skipped = f"  skipped {row['skipped']:.0%} of the steps: gradient not finite" if row["skipped"] else ""
    return f"{told}  {row['seconds']:.1f} s{skipped}"


def judgement(settings: TrainSettings, data: OfflineData, learner: OfflineLearner, watch: Watch) -> dict[str, Any]:
    """What recorded episodes say of a policy before it plays: two estimates of its discounted return, for JSON.

    Returns:
      "importance_sampling": an ``Estimate``, or None where no policy told its chances; "fitted": that of fitted
      Q-evaluation, or None where none was asked for; "recorded": what the episodes that are held out earned; "gamma";
      "dataset": its digest.
    """
    device, config = next(learner.policy.parameters()).device, learner.config
    batch = data.whole(data.held_out).to(device)
    sampled = judge(learner.policy, batch, settings.lstm, config.gamma, rng.fold_in(rng.key(settings.seed), JUDGED))
    sizes = ActorCriticConfig(settings.features, settings.lstm, settings.head, config.value_scale)
    fitted = None
    if config.fitted:
        fitted = fitted_value(learner.policy, data, config, sizes, settings.seed, watch.check)
    return {
        "gamma": config.gamma,
        "importance_sampling": None if sampled is None else sampled.table(),
        "fitted": fitted,
        "recorded": float(batch["to_go"][:, 0].mean()),
        "dataset": data.episodes.digest,
    }


def judgement_line(judged: dict[str, Any]) -> str:
    """A line on it."""
    sampled, gamma = judged["importance_sampling"], judged["gamma"]
    told = "no policy tells its chances"
    if sampled is not None:
        told = (
            f"{sampled['value']:.2f} ({sampled['low']:.2f} to {sampled['high']:.2f}) by weighted importance sampling, "
            f"{sampled['effective']:.1f} of {sampled['episodes']} episodes counting"
        )
    fitted = "" if judged["fitted"] is None else f"{judged['fitted']:.2f} by fitted Q-evaluation; "
    return (
        f"from records, return discounted by {gamma}: {told}; {fitted}"
        f"the episodes themselves {judged['recorded']:.2f}\n"
    )
