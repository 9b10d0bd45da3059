"""The training command: PPO on a preset, in rounds, each a function of the policy before it and its number alone.

That is what makes an interrupted and resumed run end in the same bits: the state of a run between rounds is the
learner, nothing else. What a run leaves behind is described in ``esper.runtime.runs``.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector

from esper.leyline.actions import Op
from esper.leyline.config import ConfigError
from esper.nissa.progress import Progress, make_progress, require_tqdm
from esper.nissa.sinks import METRICS, read_rows, require_tensorboard, write_text
from esper.runtime.build import find_device
from esper.runtime.compare import compare
from esper.runtime.interrupt import Stopped, Watch, interruptible, torch_draws_from, watched
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.report import Findings, write_report
from esper.runtime.resume import again
from esper.runtime.runs import Run, close_run, open_run, places, record, settle
from esper.runtime.scene import Rules, Scene, build_scene, policies_of, tasks_of
from esper.runtime.stopwatch import Stopwatch
from esper.runtime.table import table
from esper.runtime.train_settings import TrainSettings
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.interface import Interface, common, from_table
from esper.utils.documents import to_json
from esper.utils.failpoints import reach
from esper.utils.settings import SettingsError
from esper.utils.stats import FEWEST
from esper.utils.terminal import output

HELD_OUT = 1
"""Seed of the evaluation at the end: odd, as ``evaluate``'s default; training uses even ones."""


def train(settings: TrainSettings, out: TextIO | None = None) -> Learner:
    """Train a policy.

    Args:
      settings: everything.
      out: where progress goes; None = standard output.

    Returns:
      the learner after its last round; of a dry run, as it would start.

    Raises:
      SettingsError, SinkError, CheckpointError: the run directory holds another run, nothing to resume, or a setting
        is not allowed.
      Stopped: asked to stop by a signal; the last whole round is kept, and the report written.
    """
    _check(settings)
    out = output(out)
    folder, source = places(settings)
    device = find_device(settings.device, "--device")
    scenes = [build_scene(rules, settings.num_envs, settings.backend, device) for rules in settings.rules()]
    for scene in scenes:
        policies_of(scene, None, greedy=False)  # what the evaluation will ask for must not fail then
    interface = _interface(settings, scenes)
    sizes = ActorCriticConfig(settings.features, settings.lstm, settings.head, settings.value_scale)
    policy = build_actor_critic(sizes, interface.codec, len(interface.columns), settings.seed).to(device)
    learner = Learner(policy, settings.ppo(), settings.rounds, settings.seed)
    if settings.dry_run:
        out.write(f"{folder}: nothing written\n" + "".join(line for scene in scenes for line in _resolved(scene)))
        return learner
    run = open_run((folder, source), settings, scenes, interface, learner)
    with watched() as watch:
        _work(settings, scenes, learner, run, (watch, out))
    return learner


def _resolved(scene: Scene) -> list[str]:
    """What is played on which backend, line by line."""
    return [f"{scene.rules.task}: {line}\n" for line in (repr(scene.engine), *scene.engine.describe())]


def _work(
    settings: TrainSettings, scenes: Sequence[Scene], learner: Learner, run: Run, ends: tuple[Watch, TextIO]
) -> None:
    """All rounds, the evaluation and the report; the report also of a run that is stopped."""
    watch, out = ends
    tracks = [_track(scene, run, learner, watch) for scene in scenes]
    progress = make_progress(settings.progress, "round", out)
    findings, stopped = Findings(), None
    try:
        _learn(settings, tracks, learner, run, (progress, watch))
        settle(run)
        rows = read_rows(run.folder / METRICS)
        out.write(_time_split(rows) + _left_out(rows))
        if settings.eval_envs:
            findings = _evaluate(settings, run, progress, ends)
    except Stopped as asked:
        stopped = asked
        progress.close()
        out.write(f"{asked}: stopped after round {learner.done}; {again(run.folder)} goes on\n")
    finally:
        for track in tracks:
            track.collector.shutdown()
        close_run(run)
    write_report(run.folder, findings)
    out.write(f"{run.folder / 'report.html'}\n")
    if stopped is not None:
        raise stopped


def _check(settings: TrainSettings) -> None:
    """What must be known before anything is built."""
    if 0 < settings.eval_envs < FEWEST:
        raise SettingsError(f"--eval-envs = {settings.eval_envs}: expected 0 (no evaluation) or an integer >= {FEWEST}")
    if settings.tensorboard:
        require_tensorboard()
    if settings.progress == "tqdm":
        require_tqdm()


class Track(NamedTuple):
    """One task of a run: its environments, and what plays them."""

    task: str
    env: EsperEnv
    validation: Stopwatch
    collector: Collector
    batches: Iterator[TensorDictBase]


def _interface(settings: TrainSettings, scenes: Sequence[Scene]) -> Interface:
    """What the policy sees and says: everything of the tasks it trains on, and of those it shall be able to play."""
    further = tasks_of(settings.room_for) if settings.room_for else []
    rooms = [build_scene(Rules(task=task), 1, "eager") for task in further]
    return common([scene.engine.interface for scene in (*scenes, *rooms)])


def _track(scene: Scene, run: Run, learner: Learner, watch: Watch) -> Track:
    timed = Stopwatch(interruptible(scene.engine, watch))
    env = EsperEnv(timed.engine, scene.mode, scene.params, interface=from_table(run.table["interface"]))
    collector = make_collector(env, learner.policy)
    return Track(scene.rules.task, env, timed, collector, iter(collector))


def _learn(
    settings: TrainSettings, tracks: Sequence[Track], learner: Learner, run: Run, ends: tuple[Progress, Watch]
) -> None:
    """All rounds that are left, each recorded whole or not at all."""
    progress, watch = ends
    start, first = time.perf_counter(), learner.done
    try:
        while learner.done < settings.rounds:
            watch.check()
            row = _round(settings, tracks, learner, watch)
            record(run, learner, row)
            left = (time.perf_counter() - start) / (learner.done - first) * (settings.rounds - learner.done)
            progress.show(learner.done, settings.rounds, _line(row), left)
    finally:
        progress.close()


def _round(settings: TrainSettings, tracks: Sequence[Track], learner: Learner, watch: Watch) -> dict[str, float]:
    """One episode of every environment of every task, and what is learned from it."""
    number, begun = learner.done, time.perf_counter()
    seed, batches = round_seed(settings.seed, number), []
    for track in tracks:
        track.env.next_seed, track.env.engine_seconds, track.validation.seconds = seed, 0.0, 0.0
        with torch_draws_from(seed, track.env.device):
            batches.append(next(track.batches))
    collected = time.perf_counter()

    def look() -> None:
        watch.check()
        reach("minibatch")

    try:
        learned = learner.update(batches, look)
    except ConfigError as error:
        raise SettingsError(f"--reward = {settings.reward!r}: {error}; expected finite rewards") from None
    ended = time.perf_counter()
    told = [_describe(track, batch) for track, batch in zip(tracks, batches, strict=True)]
    row = {
        "round": number + 1,
        **{name: sum(one[name] for one in told) / len(told) for name in told[0]},
        "seconds": ended - begun,
        "collect_seconds": collected - begun,
        "learn_seconds": ended - collected,
        "host_seconds": sum(track.env.engine_seconds for track in tracks),
        "validation_seconds": sum(track.validation.seconds for track in tracks),
    }
    if len(tracks) > 1:
        row |= {f"{name}/{track.task}": one[name] for track, one in zip(tracks, told, strict=True) for name in one}
    return row | learned


def _describe(track: Track, batch: TensorDictBase) -> dict[str, float]:
    """What came of one task's episodes; counts are per environment. Of rounds there is validation alone, no test.

    Accuracy and loss are means over those environments that could be validated, and ``measured`` is their share; the
    return is the mean over those whose rewards are all finite.
    """
    after, envs = batch["next"], batch.shape[0]
    returns = after["reward"].sum(1)
    op = track.env.interface.codec.op[batch["action"]]
    columns = {
        "return": torch.where(returns.isfinite(), returns, torch.nan).nanmean(),
        "val_accuracy": after["val_accuracy"][:, -1].nanmean(),
        "val_loss": after["val_loss"][:, -1].nanmean(),
        "measured": after["val_loss"][:, -1].isfinite().float().mean(),
        "seed_params": after["seed_params"][:, -1].mean(),
        "refused": after["refused"].sum(),
        "rolled_back": after["rolled_back"].sum(),
        **{f"share_{kind.name.lower()}": (op == int(kind)).float().mean() for kind in Op},
    }
    found = dict(zip(columns, torch.stack(list(columns.values())).tolist(), strict=True))  # one download
    return found | {name: found[name] / envs for name in ("refused", "rolled_back")}


def round_seed(seed: int, number: int) -> int:
    """Seed of a round's environments and draws; training uses even numbers, held-out evaluation odd ones."""
    return 2 * (seed * 1_000_003 + number)


def _line(row: dict[str, float]) -> str:
    skipped = f"  skipped {row['skipped']:.0%} of the minibatches: gradient not finite" if row["skipped"] else ""
    return (
        f"return {row['return']:7.2f}  validation {row['val_accuracy']:5.1f} %  "
        f"entropy {row['entropy']:5.2f}  kl {row['kl']:6.4f}  {row['seconds']:5.1f} s" + skipped
    )


def _time_split(rows: list[dict[str, Any]]) -> str:
    """What of a step validation took, and what of a round's time the hosts did not take.

    The first round, which compiles, counts only if it is alone.
    """
    counted = rows[1:] or rows
    if not counted:
        return ""
    whole, hosts, learning = (sum(row[f"{name}seconds"] for row in counted) for name in ("", "host_", "learn_"))
    validation = 100 * sum(row["validation_seconds"] for row in counted) / hosts
    share, learned = 100 * (whole - hosts) / whole, 100 * learning / whole
    return (
        f"validation: {validation:.1f} % of a step; other than the hosts: {share:.1f} % of a round "
        f"({learned:.1f} % learning), mean of {len(counted)} rounds of {whole / len(counted):.2f} s\n"
    )


def _left_out(rows: list[dict[str, Any]]) -> str:
    """A line on decisions that taught nothing, if there were any; rounds of before they were counted had none."""
    found = [row for row in rows if row.get("left_out")]
    if not found:
        return ""
    share = sum(row["left_out"] for row in found) / len(rows)
    return (
        f"left out: {100 * share:.2g} % of all decisions, from round {found[0]['round']} on: in their episodes not all "
        "numbers were finite, and they taught nothing\n"
    )


def _evaluate(settings: TrainSettings, run: Run, progress: Progress, ends: tuple[Watch, TextIO]) -> Findings:
    """Play the learned policy and the baselines on held-out environments of every task; write what came of it.

    Returns:
      the first task's findings; the others' are in files of their own, ``evaluation-2.json`` and on.
    """
    (watch, out), found = ends, []
    for place, rules in enumerate(settings.rules(), start=1):
        scene = build_scene(rules, settings.eval_envs, settings.backend, settings.device)
        scene = scene._replace(engine=interruptible(scene.engine, watch))
        policies = policies_of(scene, load_run(run.folder), greedy=False)
        report, outcomes = compare(scene, policies, HELD_OUT, progress.note)
        watch.check()  # nobody looked while the static network trained
        progress.close()
        name = "evaluation.json" if place == 1 else f"evaluation-{place}.json"
        write_text(run.folder / name, to_json(report, indent=2) + "\n")
        out.write("\n" + table(report))
        where = scene.engine.structure.slot_names
        found.append(Findings(report, tuple(outcomes), scene.engine.codec.blueprint_names, where))
    return found[0]
