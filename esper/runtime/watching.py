"""Watching a run from inside: traces of its rounds, what became of its seeds, and what is out of the ordinary.

Nothing here is part of what a run computes: it reads what happened, and what it cannot write the run goes on without.
``watch.jsonl`` holds the last rounds of chosen environments and the one being played, for the live page;
``seeds.jsonl`` a report on every seed of these environments. A round that was taken up midway is not counted by
blueprint: what was played of it before nobody saw.
"""

import json
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.leyline.events import Transition
from esper.leyline.state import State
from esper.nissa.anomalies import Anomaly, anomalies, observe, told_of
from esper.nissa.blueprint_table import joined, tally
from esper.nissa.field_reports import as_table, field_reports
from esper.nissa.growth_events import EpisodePlace, growth_events, report_events
from esper.nissa.lanes import lanes
from esper.nissa.profiles import PROFILES, Profile
from esper.nissa.seeds import lives
from esper.nissa.sinks import write_text
from esper.nissa.sinks.fan_out import FanOut
from esper.nissa.trace import Trace, record, stack
from esper.runtime.collect import Track
from esper.runtime.memory_plan import MemoryWatch
from esper.runtime.outlets import Outlets
from esper.runtime.resources import resources
from esper.simic.rewards import Reward
from esper.utils.documents import to_json
from esper.utils.files import append_line
from esper.utils.resident import resident

WATCH, SEEDS, OLDER_SEEDS = "watch.jsonl", "seeds.jsonl", "seeds.1.jsonl"

KEPT = 12
"""Rounds that ``watch.jsonl`` holds."""

PAUSE = 1.0
"""Seconds between two looks at a round that is being played."""

MOST_BYTES = 8 << 20
"""Of ``seeds.jsonl``; then it becomes ``seeds.1.jsonl``, in the place of an older one."""


class Listener:
    """Keeps the decisions of one task's round, on the device.

    Attributes:
      first: decisions of the round that were played before anybody listened.
      times: when decisions were over, since 1970.
    """

    def __init__(self, track: Track, first: int) -> None:
        self.first, self._codec = first, track.env.engine.codec
        self._frames: list[dict[str, Tensor]] = []
        self.times: list[float] = []
        self._terms: tuple[str, ...] = ()

    def __call__(self, before: State, state: State, event: Transition, earned: Reward) -> None:
        """Keep a decision."""
        del before
        self._frames.append(record(self._codec, state, event, earned.terms, earned.total))
        self._terms = tuple(earned.terms)
        self.times.append(time.time())

    def trace(self, envs: int | None = None) -> Trace | None:
        """What was played so far, of the first ``envs`` environments or all; None of nothing."""
        if not self._frames:
            return None
        chosen = [{name: value[:envs] for name, value in frame.items()} for frame in self._frames]
        return stack(chosen, self._terms, [])


class Telling(NamedTuple):
    """What sinks are told of environments.

    Attributes:
      profile: what is measured.
      sinks: which have the events.
    """

    profile: Profile = PROFILES["off"]
    sinks: FanOut = FanOut({})


NOBODY = Telling()


class Watching:
    """What watches the rounds of a run.

    Attributes:
      envs: environments of every task whose traces are written; 0 = none is.
      telling: what else is told.
    """

    def __init__(
        self, outlets: Outlets, envs: int, rows: Sequence[Mapping[str, Any]], telling: Telling = NOBODY
    ) -> None:
        """Begin.

        Args:
          outlets: of the run.
          envs: how many environments of every task.
          rows: of the rounds that were finished before.
          telling: what else is told.
        """
        self.telling, self._told_envs = telling, telling.profile.events if telling.sinks.sinks else 0
        self.envs, self._outlets, self._folder = envs, outlets, outlets.folder
        self._memory, _ = anomalies(rows)
        self._room, self._looked = MemoryWatch(), -PAUSE
        self._listeners: list[Listener] = []
        self._kept = deque[str](maxlen=KEPT)
        self._shown = -PAUSE
        if envs:
            self._begin(len(rows))

    def _begin(self, done: int) -> None:
        """Take up what the files hold of the rounds so far, and drop what they hold beyond."""
        self._kept.extend(line for line in lines_of(self._folder / WATCH) if 0 < _round_of(line) <= done)
        path = self._folder / SEEDS
        found = lines_of(path)
        kept = [line for line in found if 0 < _round_of(line) <= done]
        if len(kept) < len(found):
            self._outlets.attempt(path, lambda: write_text(path, "".join(f"{line}\n" for line in kept)))

    def listen(self, tracks: Sequence[Track], played: Sequence[int]) -> None:
        """Before a round: hear every decision of it.

        Args:
          tracks: task by task.
          played: decisions that were played of each before.
        """
        self._listeners = []
        self._room.begin([track.env.engine for track in tracks])
        for place, track in enumerate(tracks):
            before = played[place] if place < len(played) else 0
            track.measuring.begin(track.env, before)
            if self.envs or self._told_envs:
                self._listeners.append(Listener(track, before))
                track.env.listeners["watching"] = self._listeners[-1]

    def so_far(self, tracks: Sequence[Track], number: int) -> None:
        """Within a round: let the page see it, and look at the memory, now and then."""
        if time.monotonic() - self._looked >= PAUSE:
            self._room.look()
            self._looked = time.monotonic()
        if self.envs and time.monotonic() - self._shown >= PAUSE:
            self._show([*self._kept, *self._lines(tracks, number)])

    def _lines(self, tracks: Sequence[Track], number: int) -> list[str]:
        found = []
        for track, listener in zip(tracks, self._listeners, strict=True):
            if (trace := listener.trace(self.envs)) is None:
                continue
            structure = track.env.engine.structure
            names = track.env.engine.codec.blueprint_names
            table = {
                "round": number,
                "task": track.task,
                "first": listener.first,
                "decisions": track.env.engine.config.horizon,
                "played": listener.first + trace.length,
                "slots": list(structure.slot_names),
                "envs": lanes(trace, lives(trace), names),
            }
            found.append(to_json(table))
        return found

    def _show(self, lines: Sequence[str]) -> None:
        path = self._folder / WATCH
        self._outlets.attempt(path, lambda: write_text(path, "".join(f"{line}\n" for line in lines)))
        self._shown = time.monotonic()

    def after(self, tracks: Sequence[Track], row: dict[str, Any]) -> tuple[dict[str, Any], list[Anomaly]]:
        """After a round: what its row has besides, and what is out of the ordinary.

        Args:
          tracks: task by task.
          row: the round's numbers.

        Returns:
          ``memory_bytes`` (of the device; on a CPU, of the process), ``memory_left``, of seeds what ``joined`` tells,
          what the telemetry profile measures, and ``told_of``.
        """
        told: dict[str, Any] = {"memory_bytes": resident(torch.device(tracks[0].env.device or "cpu"))}
        told |= self._room.look()
        for track in tracks:
            track.env.listeners.pop("watching", None)
        if self.envs:
            told |= self._seeds(tracks, int(row["round"]))
        told |= self._measures(tracks, int(row["round"]))
        self._memory, found = observe(self._memory, row | told)
        return told | told_of(found), found

    def _measures(self, tracks: Sequence[Track], number: int) -> dict[str, float]:
        """What was measured, of several tasks also task by task; what happened in environments goes to the sinks."""
        profile, sinks = self.telling
        found = dict[str, float]() if not profile.resources else resources(tracks[0].env.device, sinks)
        by_task = list[dict[str, float]]()
        for track in tracks:
            numbers, events = track.measuring.after(track.env, number)
            by_task.append(numbers)
            if len(tracks) > 1:
                found |= {f"{name}/{track.task}": value for name, value in numbers.items()}
            for event in events if sinks.sinks else ():
                sinks.event(event)
        for name in dict.fromkeys(name for numbers in by_task for name in numbers):
            values = [numbers[name] for numbers in by_task if name in numbers]
            found[name] = sum(values) / len(values)
        if self._told_envs:
            self._tell(tracks, number)
        return found

    def _tell(self, tracks: Sequence[Track], number: int) -> None:
        """Let the sinks have what happened in the first environments."""
        for track, listener in zip(tracks, self._listeners, strict=True):
            if (trace := listener.trace(self._told_envs)) is not None:
                slots, history = track.env.engine.structure.slot_names, self.telling.profile.history
                place = EpisodePlace(number, track.task, track.env.engine.codec, slots, listener.first, history)
                reports = () if listener.first else report_events(trace, listener.times, place)
                for event in (*growth_events(trace, listener.times, place), *reports):
                    self.telling.sinks.event(event)

    def _seeds(self, tracks: Sequence[Track], number: int) -> dict[str, float]:
        """Keep the round, report on its seeds, and count them."""
        self._kept.extend(self._lines(tracks, number))
        self._show(self._kept)
        tallies, reports = [], []
        for track, listener in zip(tracks, self._listeners, strict=True):
            trace = None if listener.first else listener.trace()
            if trace is None:
                continue
            seeds, names = lives(trace), track.env.engine.codec.blueprint_names
            tallies.append(tally(trace, seeds, names))
            watched = type(seeds)(*(column[seeds.env < self.envs] for column in seeds))
            where = {"round": number, "task": track.task}
            reports += [where | as_table(report) for report in field_reports(trace, watched, names)]
        self._report(reports)
        return joined(tallies) if len(tallies) == len(tracks) else {}

    def _report(self, reports: Sequence[Mapping[str, Any]]) -> None:
        path = self._folder / SEEDS

        def write() -> None:
            if path.exists() and path.stat().st_size > MOST_BYTES:
                os.replace(path, self._folder / OLDER_SEEDS)
            append_line(path, "\n".join(to_json(report) for report in reports))

        if reports:
            self._outlets.attempt(path, write)


def lines_of(path: Path) -> list[str]:
    """The whole lines of a file; none where it is absent or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return []


def _round_of(line: str) -> int:
    """The round of a line; 0 if it has none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return 0
    number = found.get("round") if isinstance(found, dict) else None
    return number if type(number) is int else 0
