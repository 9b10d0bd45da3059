"""Telemetry profiles: what a run measures of its environments, how often, and what that takes.

``MEASURES`` has a row for every number that can be set, ``PROFILES`` what each profile sets; nothing else decides what
is measured. With ``off`` nothing of this runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from esper.utils.documents import as_float, figure, shown
from esper.utils.settings import Entry, SettingsError


class Measure(NamedTuple):
    """A number of a profile.

    Attributes:
      says: what it decides.
      takes: what it costs.
      low, high: of a number, what is allowed.
      open: whether the two bounds themselves are left out.
    """

    says: str
    takes: str = "nothing by itself"
    low: float = 0
    high: float = 1
    open: bool = False


MEASURES = {
    "history": Measure("losses that are looked back on for a plateau", low=5, high=100),
    "gradients": Measure(
        "decisions from one epoch to the next whose gradients are measured, of all its minibatches, the last of an "
        "episode among them; 0 = never",
        "native: a call of the library for every minibatch instead of one for all; everywhere: a sort of the "
        "hosts' gradients",
        high=100_000,
    ),
    "environments": Measure("the first so many are measured; 0 = all", "in proportion", high=65_536),
    "percentiles": Measure("of gradients' absolute values, ascending", "little beside the sort", high=100),
    "layers": Measure("also the gradients of every block of the host", "a number a block"),
    "classes": Measure("accuracy by class, where gradients are measured", "nothing: it is known anyway"),
    "samples": Measure(
        "random directions in which the loss is looked at after an episode, 1 to 20; 0 = none",
        "a validation of the environments on 256 samples each, by the definition",
        high=20,
    ),
    "scale": Measure("length of a step in such a direction, as a share of a standard normal", high=1, open=True),
    "curvature": Measure(
        "products with the Hessian after an episode, for its largest eigenvalue; 0 = none",
        "about eight validations each, by the definition",
        high=100,
    ),
    "landscape": Measure("the first so many environments whose loss is looked at", "in proportion", low=1, high=1024),
    "events": Measure(
        "the first so many environments of which every decision, transition and epoch is told to the sinks",
        "three to five lines a decision of each, read when a round is over",
        high=1024,
    ),
    "operations": Measure("whether sinks are told of every call of the engine", "an event a call"),
    "resources": Measure(
        "memory, queues of sinks, compilations with their seconds, hits and misses of what is kept of them, and the "
        "time of training by itself",
        "microseconds",
    ),
}
"""Number -> what it is."""


@dataclass(frozen=True)
class Profile:
    """What is measured; see ``MEASURES``. As it stands: nothing."""

    history: int = 10
    gradients: int = 0
    environments: int = 8
    percentiles: tuple[float, ...] = (1.0, 50.0, 99.0)
    layers: bool = False
    classes: bool = False
    samples: int = 0
    scale: float = 0.01
    curvature: int = 0
    landscape: int = 4
    events: int = 0
    operations: bool = False
    resources: bool = False

    @property
    def is_off(self) -> bool:
        """Whether nothing is measured."""
        return not (self.gradients or self.samples or self.curvature or self.resources)


LAST = 100_000
"""Decisions beyond every episode's length: only its last epoch is measured."""

PROFILES = {
    "off": Profile(),
    "production": Profile(history=5, resources=True),
    "minimal": Profile(history=5, events=1, resources=True),
    "standard": Profile(gradients=LAST, classes=True, events=2, resources=True),
    "diagnostic": Profile(
        history=20,
        gradients=5,
        environments=16,
        percentiles=(1.0, 25.0, 50.0, 75.0, 99.0),
        layers=True,
        classes=True,
        samples=5,
        curvature=10,
        events=2,
        resources=True,
    ),
    "research": Profile(
        history=50,
        gradients=1,
        environments=0,
        percentiles=(1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0),
        layers=True,
        classes=True,
        samples=10,
        curvature=20,
        landscape=8,
        events=4,
        operations=True,
        resources=True,
    ),
}
"""Profile -> what it measures."""


def profile_of(name: str, given: Mapping[str, Entry], place: str = "--measure") -> Profile:
    """A profile with some of its numbers replaced.

    Args:
      name: of ``PROFILES``.
      given: of ``MEASURES`` by name; several percentiles as a tuple, or as a word with ``+`` between them.
      place: where they were given, for messages.

    Raises:
      SettingsError: an unknown profile or number, or a value that is not allowed; one line.
    """
    if name not in PROFILES:
        raise SettingsError(f"--telemetry = {shown(name)}: expected {' or '.join(PROFILES)}")
    for each in given:
        if each not in MEASURES:
            near = get_close_matches(each, MEASURES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(MEASURES)}"
            raise SettingsError(f"{place}: {shown(each)[1:-1]}: unknown; {hint}")
    return replace(PROFILES[name], **{each: _checked(each, value, place) for each, value in given.items()})


KINDS = {field.name: type(field.default) for field in fields(Profile)}


def _checked(name: str, value: Entry, place: str) -> Any:
    kind, measure = KINDS[name], MEASURES[name]
    if kind is tuple:
        return _percentiles(value, place)
    if kind is bool:
        if type(value) is not bool:
            raise SettingsError(f"{place}: {name} = {shown(value)}: expected true or false")
        return value
    number = as_float(value) if kind is float and type(value) is int else value
    inside = type(number) is kind and measure.low <= number <= measure.high
    if not inside or (measure.open and number in (measure.low, measure.high)):
        words = "an integer" if kind is int else "a number"
        bounds = f"between {figure(measure.low)} and {figure(measure.high)}, without these"
        bounds = bounds if measure.open else f"from {figure(measure.low)} to {figure(measure.high)}"
        raise SettingsError(f"{place}: {name} = {shown(value)}: expected {words} {bounds}")
    return number


def _percentiles(value: Entry, place: str) -> tuple[float, ...]:
    """Ascending numbers from 0 to 100; one, several, or none."""
    parts: Sequence[Entry] = value.split("+") if isinstance(value, str) else (value,)
    parts = value if isinstance(value, tuple) else parts
    try:
        numbers = tuple(float(part) for part in parts if not isinstance(part, bool | tuple))
    except (ValueError, OverflowError):
        numbers = ()
    ascending = all(low < high for low, high in zip((-math.inf, *numbers), numbers, strict=False))
    if len(numbers) < len(parts) or not ascending or any(not 0 <= number <= 100 for number in numbers):
        allowed = "numbers from 0 to 100 that ascend, with + between them"
        raise SettingsError(f"{place}: percentiles = {shown(value)}: expected {allowed}")
    return numbers


def profile_table() -> str:
    """All profiles, number by number, for people."""
    names = list(PROFILES)
    rows = [["", *names]]
    for each in MEASURES:
        rows.append([each, *(_shown(each, getattr(profile, each)) for profile in PROFILES.values())])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "".join(
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _shown(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(figure(each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "-"
    return (
        "last"
        if name == "gradients" and value == LAST
        else "-"
        if value == 0 and name != "environments"
        else str(value)
    )
