"""Training on several ranks: ``torchrun --standalone --nproc-per-node N -m esper train ...``.

The first rank does what a run of one process does: it alone writes, prints and evaluates. The others play their
environments and learn the same. Checkpoints lie between rounds, and hold nothing of the ranks: a run goes on with as
many as one likes, to the same curves within rounding. Where torchrun starts a job again, it goes on from its last one.
"""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import safetensors.torch
import torch

from esper.runtime.distributed import Launch, RankGroup, RankLostError, cores, joined, own_device
from esper.runtime.intake import Intake
from esper.runtime.interrupt import watched
from esper.runtime.players import Players
from esper.runtime.policy_checkpoint import learner_tensors, restore_learner
from esper.runtime.resume import holds_run, run_folder
from esper.runtime.train import train, train_round
from esper.runtime.train_settings import TrainSettings
from esper.runtime.train_setup import build
from esper.simic.ppo import Learner
from esper.urza.checkpoint import Checkpoint
from esper.utils.documents import to_json
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError

STARTS = "starts.jsonl"
"""In a run directory: a line for every start of a job of ranks."""

DONE = "done"
"""Name of the number of rounds among the tensors that the first rank hands on."""


def train_on_ranks(settings: TrainSettings, launched: Launch, out: TextIO | None = None) -> Learner:
    """Train as one of a job's ranks.

    Args:
      settings: everything; ``num_envs`` of all ranks together.
      launched: what the launcher says of this process.
      out: where the first rank's progress goes.

    Returns:
      the learner after its last round.

    Raises:
      As ``train``, of the first rank. SystemExit: another rank's failure, told by the first.
      RankLostError: another rank is gone.
    """
    if settings.demonstrations:
        raise SettingsError("--demonstrations: are shown to one process; expected 0, or --start-from such a run")
    settings = replace(settings, device=own_device(settings.device, launched))
    torch.set_num_threads(settings.threads or max(1, cores() // launched.local_size))
    settings = _taken_up(settings, launched)
    with joined(launched, settings.device) as group:
        return _lead(settings, group, out) if group.rank == 0 else _follow(settings, group)


def _lead(settings: TrainSettings, group: RankGroup, out: TextIO | None) -> Learner:
    """The first rank's part."""
    try:
        return train(settings, out, group, lambda folder, learner: _begin(folder, learner, group))
    except RankLostError:
        if told := group.told():
            raise SettingsError(told) from None
        raise


def _begin(folder: Path, learner: Learner, group: RankGroup) -> None:
    """Write down a start, and hand the learner on."""
    _write_start(folder, group.launched)
    hand_on(learner)


def _follow(settings: TrainSettings, group: RankGroup) -> Learner:
    """Another rank's part. What it fails by the first one tells; that one of them is gone the launcher does."""
    logging.getLogger("esper").setLevel(logging.ERROR)
    try:
        built = build(settings, group)
        learner = built.learner
        if settings.dry_run:
            return learner
        with watched() as watch:
            group.look = watch.check
            hand_on(learner)
            players = Players(settings, learner, watch, built.scenes, built.interface)
            intake = Intake(built.folder, built.found.entries, closed=True)
            try:
                row: dict[str, Any] = {}
                while learner.done < settings.rounds:
                    watch.check()
                    intake.before_round(players, lambda text: None)
                    row, _ = train_round(players, None, row)
            finally:
                players.shutdown()
        return learner
    except RankLostError:
        raise SystemExit(1) from None
    except ValueError as error:
        group.tell(error)
        raise SystemExit(2) from None


def hand_on(learner: Learner) -> None:
    """Let all ranks' learners be the first rank's.

    Raises:
      RankLostError: one of them is gone.
    """
    mine = learner_tensors(learner) | {DONE: torch.tensor(learner.done)} if learner.ranks.rank == 0 else {}
    sent = torch.frombuffer(bytearray(safetensors.torch.save(mine)), dtype=torch.uint8)
    found = learner.ranks.rows(sent if mine else sent[:0])
    if not mine:
        tensors = safetensors.torch.load(found.numpy().tobytes())
        restore_learner(learner, Checkpoint(tensors, {"done": int(tensors.pop(DONE))}))


def _taken_up(settings: TrainSettings, launched: Launch) -> TrainSettings:
    """A job that was started again goes on with what it has written.

    Raises:
      SettingsError: it was started more often than the launcher says that it may be.
    """
    if not launched.restarts:
        return settings
    named = settings.resume not in ("", "auto") and not settings.out
    folder = user_path(settings.resume) if named else run_folder(settings.out, settings.task)
    starts = [start for start in _starts(folder) if start.get("job") == launched.job]
    if len(starts) > launched.most + 1:
        raise SettingsError(f"{folder}: started {len(starts)} times; torchrun's --max-restarts is {launched.most}")
    return replace(settings, resume="auto") if starts and not named and holds_run(folder) else settings


def _starts(folder: Path) -> list[dict[str, Any]]:
    """The starts that a run directory tells of; a torn last line is none."""
    found = list[dict[str, Any]]()
    path = folder / STARTS
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found += [entry] if isinstance(entry, dict) else []
    return found


def _write_start(folder: Path, launched: Launch) -> None:
    entry = {
        "job": launched.job,
        "restart": launched.restarts,
        "ranks": launched.size,
        "threads": torch.get_num_threads(),
        "time": round(time.time(), 3),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / STARTS).open("a", encoding="utf-8") as file:
        file.write(to_json(entry) + "\n")
