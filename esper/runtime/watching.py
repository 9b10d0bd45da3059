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
from typing import Any

import torch
from torch import Tensor

from esper.leyline.events import Transition
from esper.leyline.state import State
from esper.nissa.anomalies import Anomaly, anomalies, observe, told_of
from esper.nissa.blueprint_table import joined, tally
from esper.nissa.field_reports import as_table, field_reports
from esper.nissa.lanes import lanes
from esper.nissa.seeds import lives
from esper.nissa.sinks import write_text
from esper.nissa.trace import Trace, record, stack
from esper.runtime.collect import Track
from esper.runtime.memory_plan import MemoryWatch
from esper.runtime.outlets import Outlets
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
    """

    def __init__(self, track: Track, first: int) -> None:
        self.first, self._codec = first, track.env.engine.codec
        self._frames: list[dict[str, Tensor]] = []
        self._terms: tuple[str, ...] = ()

    def __call__(self, before: State, state: State, event: Transition, earned: Reward) -> None:
        """Keep a decision."""
        del before
        self._frames.append(record(self._codec, state, event, earned.terms, earned.total))
        self._terms = tuple(earned.terms)

    def trace(self, envs: int | None = None) -> Trace | None:
        """What was played so far, of the first ``envs`` environments or all; None of nothing."""
        if not self._frames:
            return None
        chosen = [{name: value[:envs] for name, value in frame.items()} for frame in self._frames]
        return stack(chosen, self._terms, [])


class Watching:
    """What watches the rounds of a run.

    Attributes:
      envs: environments of every task whose traces are written; 0 = nothing is recorded.
    """

    def __init__(self, outlets: Outlets, envs: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin.

        Args:
          outlets: of the run.
          envs: how many environments of every task.
          rows: of the rounds that were finished before.
        """
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
            if self.envs:
                self._listeners.append(Listener(track, played[place] if place < len(played) else 0))
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
          and ``told_of``.
        """
        told: dict[str, Any] = {"memory_bytes": resident(torch.device(tracks[0].env.device or "cpu"))}
        told |= self._room.look()
        if self.envs:
            told |= self._seeds(tracks, int(row["round"]))
        self._memory, found = observe(self._memory, row | told)
        return told | told_of(found), found

    def _seeds(self, tracks: Sequence[Track], number: int) -> dict[str, float]:
        """Keep the round, report on its seeds, and count them."""
        self._kept.extend(self._lines(tracks, number))
        self._show(self._kept)
        tallies, reports = [], []
        for track, listener in zip(tracks, self._listeners, strict=True):
            track.env.listeners.pop("watching", None)
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
