"""Swimlanes: one episode as a picture. The accuracy above, below it one lane per slot, coloured by stage."""

from itertools import pairwise
from typing import NamedTuple

import torch

from esper.leyline.actions import NONE
from esper.leyline.stages import STAGES, Stage
from esper.nissa.frame import RIGHT, Axis, Frame, label, picture, span, text, ticks
from esper.nissa.markup import Markup, element, join, plain
from esper.nissa.seeds import Lives
from esper.nissa.trace import Trace

WIDTH, LEFT = 1080.0, 74.0
CURVE = 84.0
"""Height of the accuracy's part, pixels."""

LANE, NAME, BAR = 44.0, 14.0, 22.0
"""Heights of a lane, of the names in it, and of its bar, pixels."""

FOOT = 40.0
LETTER = 7.2
"""Width of a letter of a name, pixels; an estimate from above."""

SHOWN = tuple(stage for stage, row in STAGES.items() if row.colour)
"""Stages that are drawn; an empty slot is the lane's background."""

INITIAL = {stage: stage.name[0] for stage in SHOWN}
"""Letter of a stage, so that colour is not all that tells them apart."""


class Stretch(NamedTuple):
    """A slot in one stage from decision ``start`` up to, not including, ``stop``."""

    stage: Stage
    start: int
    stop: int


def stretches(trace: Trace, env: int, slot: int) -> list[Stretch]:
    """The stages of a slot through an episode, one after the other; the stage is that of the decision's epoch.

    Two seeds that follow each other in the same stage have a stretch each.
    """
    stages = trace.during[:, env, slot].tolist()
    placed = (trace.slot[:, env] == slot) & (trace.kind[:, env] != NONE)
    changes = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1] or placed[i]]
    cuts = [0, *changes, len(stages)]
    return [Stretch(Stage(stages[start]), start, stop) for start, stop in pairwise(cuts)]


def swimlanes(trace: Trace, seeds: Lives, env: int, names: tuple[str, ...], title: str) -> Markup:
    """One environment's episode.

    Args:
      trace: of all environments.
      seeds: of the same trace.
      env: which environment.
      names: of the blueprints.
      title: what is shown.
    """
    num_slots = trace.stage.shape[2]
    height = CURVE + LANE * num_slots + FOOT
    frame = Frame(Axis("", 0.5, trace.length + 0.5), Axis("", 0.0, 1.0), WIDTH, height, left=LEFT)
    parts = [_ruler(frame, trace.length, num_slots), _curve(frame, trace.accuracy[:, env].tolist())]
    parts += [_lane(frame, trace, env, slot) for slot in range(num_slots)]
    mine = (seeds.env == env).nonzero().squeeze(1)
    births = torch.stack((seeds.slot[mine], seeds.born[mine], seeds.kind[mine]), dim=1)
    parts += [
        _seed_names(frame, [(born, names[kind]) for at, born, kind in sorted(births.tolist()) if at == slot], slot)
        for slot in range(num_slots)
    ]
    words = f"{trace.length} decisions, {num_slots} slots, {len(mine)} seeds; one lane per slot, coloured by stage."
    return picture(frame, title, words, *parts)


def _lane_top(slot: int) -> float:
    return CURVE + LANE * slot


def _ruler(frame: Frame, length: int, num_slots: int) -> Markup:
    """Numbers of the decisions, and a light line at each of them."""
    bottom, parts = _lane_top(num_slots) + 4, []
    for value in ticks(Axis("", 1, length), min(length, 25), whole=True):
        x = frame.at_x(value)
        parts.append(element("line", x1=x, x2=x, y1=8, y2=bottom, class_="grid"))
        parts.append(text(x, bottom + 14, label(value), class_="tick"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, frame.height - 4, "decision (one epoch each)", class_="name"))
    return join(*parts)


def _curve(frame: Frame, accuracy: list[float]) -> Markup:
    """The accuracy after each decision."""
    axis = span("", accuracy)
    inner = Frame(frame.x, axis, WIDTH, CURVE + 26, left=LEFT)
    parts = [text(13, CURVE / 2, "validation, %", transform=f"rotate(-90 13 {plain(CURVE / 2)})", class_="name")]
    for value in ticks(axis, 4):
        y = inner.at_y(value)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(text(LEFT - 6, y + 4, label(value), "end", class_="tick"))
    points = " ".join(f"{plain(inner.at_x(i))},{plain(inner.at_y(v))}" for i, v in enumerate(accuracy, start=1))
    return join(*parts, element("polyline", points=points, class_="line c0"))


def _lane(frame: Frame, trace: Trace, env: int, slot: int) -> Markup:
    top = _lane_top(slot) + NAME
    width = WIDTH - RIGHT - LEFT
    parts = [
        text(LEFT - 10, top + 15, f"slot {slot}", "end", class_="row"),
        element("rect", x=LEFT, y=top, width=width, height=BAR, class_="lane"),
    ]
    for stage, start, stop in stretches(trace, env, slot):
        if stage not in SHOWN:
            continue
        left, right = frame.at_x(start + 0.5), frame.at_x(stop + 0.5)
        words = element("title", f"slot {slot}: {stage.name}, decisions {start + 1} to {stop}")
        box = {"x": left, "y": top, "width": right - left, "height": BAR}
        parts.append(element("rect", words, class_=f"stage s-{stage.name.lower()}", **box))
        if right - left >= 14:
            letter = f"initial on-{stage.name.lower()}"
            parts.append(text((left + right) / 2, top + 15, INITIAL[stage], class_=letter))
    return join(*parts)


def _seed_names(frame: Frame, births: list[tuple[int, str]], slot: int) -> Markup:
    """Names of the seeds above where they begin, cut where the next one begins."""
    parts = []
    for index, (born, name) in enumerate(births):
        left = frame.at_x(born + 0.5)
        right = frame.at_x(births[index + 1][0] + 0.5) if index + 1 < len(births) else WIDTH - RIGHT
        room = int((right - left - 4) / LETTER)
        shown = name if len(name) <= room else name[: room - 1] + "…" if room >= 4 else ""
        parts.append(text(left + 2, _lane_top(slot) + 10, shown, "start", class_="seed"))
    return join(*parts)
