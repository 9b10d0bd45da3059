"""What the examples share: the line of a table, and paired differences."""

from typing import TextIO

from torch import Tensor

from esper.runtime.rollout import Outcome
from esper.utils.stats import mean_interval

WIDTH = 34
"""Columns of a name."""


def interval(values: Tensor) -> str:
    """Mean and 95 % half-width over environments, of values [E]."""
    mean, half = mean_interval(values.double())
    return f"{mean:.1f} ± {half:.1f}"


def write_outcomes(out: TextIO, outcomes: list[Outcome]) -> None:
    """A table of what policies or seeds came to.

    Args:
      out: where it goes.
      outcomes: of the same environments, the first of which the others are compared with.
    """
    out.write(f"{'':<{WIDTH}}{'test %':>14}{'J':>14}{'J less the first':>18}{'added':>8}\n")
    for outcome in outcomes:
        less = "" if outcome is outcomes[0] else interval(outcome.utility - outcomes[0].utility)
        cells = f"{interval(outcome.test_accuracy):>14}{interval(outcome.utility):>14}{less:>18}"
        out.write(f"{outcome.policy:<{WIDTH}}{cells}{outcome.added.double().mean():>8.0f}\n")
