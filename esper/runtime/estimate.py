"""``esper estimate``: what a training run will need, in memory and in time, told by a few steps of smaller ones.

Two short rounds are played at two numbers of environments. What does not depend on that number, and what does, follows
from both; the rest is a straight line. Of memory the line is never flatter than what can be counted: copies of the
engine's state, and of what an episode leaves for learning.
"""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TextIO

import torch

from esper.runtime.build import find_device
from esper.runtime.collect import play
from esper.runtime.fitting import with_num_envs
from esper.runtime.interrupt import Watch
from esper.runtime.learner import make_learner
from esper.runtime.memory_plan import SPARE, held_at_least
from esper.runtime.players import Players, shared_interface
from esper.runtime.scene import build_scene
from esper.runtime.train_settings import TrainSettings
from esper.urza.states import tensors_of
from esper.utils.documents import to_json
from esper.utils.memory_room import Room, room
from esper.utils.resident import peak, resident, restart_peak
from esper.utils.settings import SettingsError, setting
from esper.utils.terminal import output

SMALL, LARGE = 16, 64
"""Environments of the two probes, at most."""

MOST_ENVS = 65536
"""Environments of a run, at most."""

SHORT = 10
"""Decisions of a probe's episode, at most."""


@dataclass(frozen=True)
class EstimateSettings(TrainSettings):
    """Say what a training run with these settings will need in memory and time."""

    json: bool = setting(False, "print one JSON object instead of text")


class ShortRun(NamedTuple):
    """A short run at one number of environments.

    Attributes:
      num_envs, decisions: E and T.
      peak: bytes of this process at most, or of the device.
      collect, learn: seconds of a round.
      state: bytes of a state, per environment.
      decision: bytes that a decision leaves for learning, per environment.
    """

    num_envs: int
    decisions: int
    peak: int
    collect: float
    learn: float
    state: int
    decision: int


class Needs(NamedTuple):
    """What a run will need.

    Attributes:
      memory: bytes at most.
      round_seconds: of one round.
      seconds: of all rounds.
    """

    memory: int
    round_seconds: float
    seconds: float


def counted(probe: ShortRun, decisions: int) -> int:
    """Bytes that an environment holds at least, in a round of so many decisions."""
    return held_at_least(probe.state, decisions * probe.decision)


def needs(small: ShortRun, large: ShortRun, num_envs: int, decisions: int, rounds: int) -> Needs:
    """What a run will need.

    Args:
      small, large: probes with equal decisions; of one environment number only, they may be the same.
      num_envs, decisions, rounds: of the run.

    Returns:
      lines through both probes; times grow with the decisions, and memory by what these leave.
    """
    between = large.num_envs - small.num_envs
    measured = (large.peak - small.peak) / between if between else 0.0
    longer = held_at_least(0, (decisions - large.decisions) * large.decision)
    each = max(measured + longer, counted(large, decisions))
    memory = large.peak + large.num_envs * longer + (num_envs - large.num_envs) * each
    share = decisions / large.decisions

    def line(low: float, high: float) -> float:
        slope = max((high - low) / between, 0.0) if between else high / large.num_envs
        return share * max(high + (num_envs - large.num_envs) * slope, 0.0)

    one = line(small.collect, large.collect) + line(small.learn, large.learn)
    return Needs(int(max(memory, 0)), one, one * rounds)


def probed(settings: TrainSettings) -> ShortRun:
    """Play two rounds, the first of which compiles, and measure the second."""
    device = find_device(settings.device, "--device")
    restart_peak(device)
    scenes = [build_scene(rules, settings.num_envs, settings.backend, device) for rules in settings.rules()]
    interface = shared_interface(settings, scenes)
    learner = make_learner(settings, scenes, interface)
    players = Players(settings, learner, Watch(), scenes, interface)
    times = (0.0, 0.0)
    for number in range(2):
        begun = time.perf_counter()
        batches = [play(track, 2 * number, None, lambda now: None) for track in players.tracks]
        played = time.perf_counter()
        learner.update(batches, lambda: None)
        times = played - begun, time.perf_counter() - played
    states = [tensors_of(track.env.ended) for track in players.tracks]
    left = sum(_bytes(dict(batch.flatten_keys().items())) for batch in batches)
    horizon = batches[0].shape[1]
    players.shutdown()
    return ShortRun(
        num_envs=settings.num_envs,
        decisions=horizon,
        peak=peak(device),
        collect=times[0],
        learn=times[1],
        state=sum(map(_bytes, states)) // settings.num_envs,
        decision=left // (settings.num_envs * horizon),
    )


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def estimate(settings: EstimateSettings, out: TextIO | None = None) -> Needs:
    """Measure, and print what a run will need.

    Raises:
      SettingsError, ConfigError, DatasetError: as ``train``.
    """
    out = output(out)
    if settings.algorithm != "ppo":
        raise SettingsError(f"--algorithm = {settings.algorithm!r}: plays no round; expected ppo")
    settings = with_num_envs(settings, io.StringIO() if settings.json else out)
    scene = build_scene(settings.rules()[0], 2, settings.backend, find_device(settings.device, "--device"))
    decisions = scene.engine.config.horizon
    sizes = [min(settings.num_envs, size) for size in (SMALL, LARGE)]
    probes = [probed(replace(settings, num_envs=size, horizon=min(decisions, SHORT))) for size in sizes]
    found = needs(probes[0], probes[1], settings.num_envs, decisions, settings.rounds)
    facts = {"num_envs": settings.num_envs, "decisions": decisions, "rounds": settings.rounds, **found._asdict()}
    device = find_device(settings.device, "--device")
    here, held = room(device), resident(device)
    facts |= {"room": None if here is None else here._asdict()}
    most = None if here is None else fitting(probes[0], probes[1], decisions, int((held + here.left) * (1 - SPARE)))
    facts |= {"num_envs_that_fit": most}
    if settings.json:
        out.write(to_json(facts | {"probes": [probe._asdict() for probe in probes]}) + "\n")
    else:
        out.write(
            "".join(f"{line}\n" for line in [*_lines(probes, found, facts), *_fits(settings.num_envs, most, here)])
        )
    return found


def fitting(small: ShortRun, large: ShortRun, decisions: int, memory: int) -> int:
    """The most environments whose run needs no more memory than this; 0 where two would need more."""
    low, high = 0, MOST_ENVS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needs(small, large, middle, decisions, 1).memory <= memory else (low, middle)
    return low if low >= 2 else 0


def _fits(num_envs: int, most: int | None, here: Room | None) -> list[str]:
    """Whether that is here; nothing where it cannot be told."""
    if most is None or here is None:
        return []
    left = f"{here.left / (1 << 20):,.0f} of {here.limit / (1 << 20):,.0f} MiB of {here.place} are left"
    if num_envs <= most:
        return [f"room: {left}: it fits, and so would --num-envs {most}"]
    words = (
        f"--num-envs {most} would" if most else "no number of environments does; fewer decisions need less (--horizon)"
    )
    return [f"room: {left}: it does not fit, {words}"]


def _lines(probes: list[ShortRun], found: Needs, facts: Mapping[str, Any]) -> list[str]:
    large, mib = probes[1], 1 << 20
    return [
        f"measured: {probes[0].num_envs} and {large.num_envs} environments, {large.decisions} decisions: "
        f"{probes[0].peak / mib:,.0f} and {large.peak / mib:,.0f} MiB at most",
        f"memory: {found.memory / mib:,.0f} MiB for {facts['num_envs']:,} environments of {facts['decisions']} "
        f"decisions; an environment's state is {large.state / 1024:,.0f} KiB",
        f"time: {found.round_seconds:,.1f} s a round, {found.seconds:,.0f} s for {facts['rounds']:,} rounds, without "
        "compilation and the evaluation at the end",
    ]
