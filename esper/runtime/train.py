"""The training command: PPO on a preset, in rounds, each a function of the policy before it and its number alone.

That is what makes an interrupted and resumed run end in the same bits: the state of a run between rounds is the
learner, nothing else. What a run leaves behind is described in ``esper.runtime.runs``.
"""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

import torch
from tensordict import TensorDictBase

from esper.leyline.config import ConfigError
from esper.nissa.anomalies import Anomaly
from esper.nissa.progress import Progress, make_progress, require_tqdm
from esper.nissa.sinks import METRICS, read_rows
from esper.runtime.collect import Begun, play
from esper.runtime.compile_orders import ordering
from esper.runtime.demonstrations import demonstrate
from esper.runtime.feeds import require_sinks, run_operations, telling_calls
from esper.runtime.fingerprints import expect_common, fingerprints
from esper.runtime.intake import Intake
from esper.runtime.interrupt import Stopped, watched
from esper.runtime.machine import moved
from esper.runtime.outlets import Outlets
from esper.runtime.players import Players
from esper.runtime.policy_checkpoint import learner_tensors
from esper.runtime.record_training import recording
from esper.runtime.report import Findings, write_report
from esper.runtime.resume import again
from esper.runtime.run_evaluation import evaluate_run
from esper.runtime.run_health import BLUEPRINT_TABLE, blueprints_json, health_lines, run_health
from esper.runtime.runs import Run, abandon, open_run, pause, record, release, settle
from esper.runtime.scene import Scene
from esper.runtime.told import READ, left_out, of_episodes, round_line, time_split
from esper.runtime.train_settings import TrainSettings
from esper.runtime.train_setup import build
from esper.runtime.watch import shown_live
from esper.runtime.watching import Telling, Watching
from esper.simic.ppo import Learner
from esper.simic.ranks import ALONE, Ranks, whole
from esper.tamiyo.interface import PolicyNetwork, to_table
from esper.urza.checkpoint import CheckpointError
from esper.urza.lock import LockError
from esper.urza.series import Moment
from esper.utils.documents import to_json
from esper.utils.failpoints import reach
from esper.utils.resilience.causes import Nature, cause_of
from esper.utils.settings import SettingsError
from esper.utils.stats import FEWEST
from esper.utils.terminal import output

ROUNDS = 1_000_003
"""Rounds of a run that have environments of their own; demonstrations have the last ones of seed 0, in every run."""


Recorded = tuple[Run, Watching]
"""Where a round goes, and who watches it."""


def train(
    settings: TrainSettings,
    out: TextIO | None = None,
    ranks: Ranks = ALONE,
    begin: Callable[[Path, Learner], object] = lambda folder, learner: None,
) -> Learner:
    """Train a policy.

    Args:
      settings: everything.
      out: where progress goes; None = standard output.
      ranks: of the job; this is the first of them.
      begin: told of the run directory and the learner before the first round.

    Returns:
      the learner after its last round; of a dry run, as it would start.

    Raises:
      SettingsError, SinkError, CheckpointError: the run directory holds another run, nothing to resume, or a setting
        is not allowed.
      Stopped: asked to stop by a signal; the last whole round is kept, and the report written.
    """
    check(settings)
    if settings.algorithm != "ppo":
        raise SettingsError(f"--algorithm = {settings.algorithm!r}: learns from records, and plays no round")
    out = output(out)
    folder, source, device, found, scenes, interface, learner, said = build(settings, ranks)
    out.write("".join(said))
    if settings.dry_run:
        out.write(f"{folder}: nothing written\n" + "".join(line for scene in scenes for line in _resolved(scene)))
        return learner
    backends = [scene.engine.backend.name for scene in scenes]
    out.write("".join(moved(source.folder, device, backends) if source is not None else ()))
    with watched() as watch:  # before there is a checkpoint, from which a run that is stopped goes on
        run = open_run((folder, source), settings, scenes, interface, learner)
        try:
            run.tell(run_operations(settings, run.folder, scenes, out))
            begin(run.folder, learner)
            players = Players(settings, learner, watch, scenes, interface, run.operations.spans)
            outlets = Outlets(run.folder, fence=run.saver.lock.check)
            kept, port = recording(run.folder, settings, scenes, learner.done), settings.watch_port
            with (
                run.operations("run", settings.rounds, task=settings.task, algorithm=settings.algorithm),
                closing(outlets),
                telling_calls(settings, run.operations),
                ordering(settings.compile_requests, players.spans) as orders,
                shown_live(run.folder, port if settings.watch else None, out),
                kept as players.episodes,
            ):
                intake = Intake(run.folder, found.entries, orders, operations=run.operations, closed=ranks.size > 1)
                intake.begin(found, scenes, source)
                _work(players, intake, (run, outlets), out)
        except (LockError, CheckpointError):
            raise
        except Exception as error:
            if source is None and learner.done == 0 and _leaves_nothing(error, run):
                abandon(run)
            raise
        finally:
            release(run)
    return learner


def _leaves_nothing(error: Exception, run: Run) -> bool:
    """Whether a run that failed in its first round is taken back: where its settings are at fault, and where nothing is
    kept of it. What is kept goes on once the surroundings are well; of a fault that nobody knows it may be evidence.
    """
    nature = cause_of(error).nature
    return nature is Nature.CALLER or (nature is Nature.UNKNOWN and run.saver.saved in (None, Moment(0)))


def _resolved(scene: Scene) -> list[str]:
    """What is played on which backend, line by line."""
    return [f"{scene.rules.task}: {line}\n" for line in (repr(scene.engine), *scene.engine.describe())]


def _work(players: Players, intake: Intake, kept: tuple[Run, Outlets], out: TextIO) -> None:
    """All rounds, the evaluation and the report; the report also of a run that is stopped."""
    (run, outlets), settings, learner = kept, players.settings, players.learner
    progress = make_progress(settings.progress, "round", out)
    findings, stopped = Findings(), None
    try:
        if settings.demonstrations and not learner.done and not run.begun:
            with run.operations("demonstrate", rounds=settings.demonstrations):
                out.write(_demonstrate(players))
            run.tensors = learner_tensors(learner)
        _learn(players, intake, (run, outlets), progress)
        settle(run)
        rows = read_rows(run.folder / METRICS)
        health = run_health(run.folder, rows)
        out.write(time_split(rows) + left_out(rows) + health_lines(health))
        outlets.write(run.folder / BLUEPRINT_TABLE, to_json(blueprints_json(health), indent=2) + "\n")
        if settings.eval_envs:
            ends = (players.watch, out)
            with run.operations("evaluate", learner.done, environments=settings.eval_envs):
                findings = evaluate_run([scene.rules for scene in players.scenes], settings, kept, progress, ends)
    except Stopped as asked:
        stopped = asked
        progress.close()
        out.write(f"{asked}: stopped after round {learner.done}; {again(run.folder)} goes on\n")
    finally:
        players.shutdown()
        settle(run)
    write_report(run.folder, findings, outlets.write)
    out.write(f"{run.folder / 'report.html'}\n")
    if stopped is not None:
        raise stopped


def check(settings: TrainSettings) -> None:
    """What must be known before anything is built."""
    if 0 < settings.eval_envs < FEWEST:
        raise SettingsError(f"--eval-envs = {settings.eval_envs}: expected 0 (no evaluation) or an integer >= {FEWEST}")
    if settings.room_for and settings.policy_network == PolicyNetwork.GRAPH.value:
        raise SettingsError(
            f"--room-for = {settings.room_for!r}: a policy of --policy-network graph plays every task; expected none"
        )
    require_sinks(settings)
    if settings.progress == "tqdm":
        require_tqdm()


def _learn(players: Players, intake: Intake, kept: tuple[Run, Outlets], progress: Progress) -> None:
    """All rounds that are left, each recorded whole or not at all; between them what was asked for is taken."""
    (run, outlets), settings, learner = kept, players.settings, players.learner
    start, first = time.perf_counter(), learner.done
    before = read_rows(run.folder / METRICS)
    row: dict[str, Any] = before[-1] if before else {}
    telling = Telling(settings.profile, run.operations.sinks)
    watching = Watching(outlets, settings.watch_envs if learner.ranks.size == 1 else 0, before, telling)
    try:
        while learner.done < settings.rounds:
            players.watch.check()
            if intake.before_round(players, progress.note):
                run.table = run.table | {
                    "interface": to_table(players.interface),
                    "blueprints": players.documents(),
                }
            with run.operations("round", learner.done + 1) as said:
                row, found = train_round(players, (run, watching), row)
                said |= {"return": row["return"], "val_accuracy": row["val_accuracy"]}
                record(run, learner, row)
            for anomaly in found:
                progress.note(anomaly.line)
            left = (time.perf_counter() - start) / (learner.done - first) * (settings.rounds - learner.done)
            progress.show(learner.done, settings.rounds, round_line(row), left)
    finally:
        progress.close()


def _demonstrate(players: Players) -> str:
    """Show the learner what the tasks' scripts do, in environments that no round has and all runs share; a line."""
    settings = players.settings
    seeds = [round_seed(0, ROUNDS - number) for number in range(1, settings.demonstrations + 1)]
    plays = [(track.env, scene.task) for track, scene in zip(players.tracks, players.scenes, strict=True)]
    return demonstrate(plays, players.learner, seeds, settings.lstm, players.watch.check)


def _collect(players: Players, seed: int, recorded: Recorded | None) -> list[TensorDictBase]:
    """One episode of every environment of every task; of one rank, those that were begun before are gone on with."""
    goes_on, tracks = recorded is not None and players.learner.ranks.size == 1, players.tracks
    begun, batches = list(recorded[0].begun) if recorded and goes_on else [], list[TensorDictBase]()
    if recorded:
        recorded[1].listen(tracks, [part.played.shape[1] for part in begun])
    for place, track in enumerate(tracks):
        track.env.engine_seconds = track.validation.seconds = 0.0

        def so_far(now: Begun, place: int = place) -> None:
            begun[place:] = [now]
            if recorded and goes_on:
                pause(recorded[0], begun)
                recorded[1].so_far(tracks, recorded[0].done + 1)

        with players.spans.span("collect", task=track.task):
            batches.append(play(track, seed, begun[place] if place < len(begun) else None, so_far))
    return batches


def train_round(
    players: Players, recorded: Recorded | None, before: dict[str, Any]
) -> tuple[dict[str, Any], list[Anomaly]]:
    """One episode of every environment of every task, and what is learned from it.

    Several ranks play whole rounds: what each has begun is nowhere kept.

    Args:
      players: of this rank.
      recorded: of the first rank; None on others.
      before: the row of the round before.

    Returns:
      the round's row, and what is out of the ordinary in it.

    Raises:
      SettingsError: nothing can be learned from it.
      RuntimeError: the ranks' learners are not the same any more.
    """
    settings, tracks, learner, failed = players.settings, players.tracks, players.learner, players.failures()
    number, begun = learner.done, time.perf_counter()
    ranks = learner.ranks
    batches = _collect(players, round_seed(settings.seed, number), recorded)
    collected = time.perf_counter()

    def look() -> None:
        players.watch.check()
        reach("minibatch")

    try:
        with players.spans.span("learn"):
            learned = learner.update(batches, look)
    except ConfigError as error:
        raise SettingsError(f"--reward = {settings.reward!r}: {error}; expected finite rewards") from None
    players.keep(round_seed(settings.seed, number), number, batches)
    ended = time.perf_counter()
    played = [whole(ranks, batch, READ) for batch in batches]
    told = [of_episodes(track, batch) for track, batch in zip(tracks, played, strict=True)]
    row = {
        "round": number + 1,
        **{name: sum(one[name] for one in told) / len(told) for name in told[0]},
        "seconds": ended - begun,
        "collect_seconds": collected - begun,
        "learn_seconds": ended - collected,
        "host_seconds": sum(track.env.engine_seconds for track in tracks),
        "validation_seconds": sum(track.validation.seconds for track in tracks),
        "kernel_failures": int(ranks.sum(torch.tensor(players.failures() - failed))),
    }
    if len(tracks) > 1:
        row |= {f"{name}/{track.task}": one[name] for track, one in zip(tracks, told, strict=True) for name in one}
    ends = [track.env.ended for track in tracks]
    expect_common(learner)
    seen, found = recorded[1].after(tracks, row | learned) if recorded else ({}, [])
    return row | learned | seen | fingerprints(before, ends, batches, learner), found


def round_seed(seed: int, number: int) -> int:
    """Seed of a round's environments and draws; training uses even numbers, held-out evaluation odd ones."""
    return 2 * (seed * ROUNDS + number)
