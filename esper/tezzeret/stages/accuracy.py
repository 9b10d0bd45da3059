"""How exact what was compiled is: beside the eager form, and where that is not enough, beside the exact function.

Two rules; a number passes by either.

1. It differs from the eager form's number g by at most ``TOLERANCE`` (least + |g|), with least = 1, or the largest
   number of the tensor where that is smaller: a gradient of 1e-4 is not right because it is off by less than 1e-5.
2. It is as exact as the eager form is. Both forms are float32 evaluations of one function, in another order of sums,
   and where much cancels (features a hundred times as large, the gradient of a bias before a norm) no float32 form is
   within 1e-5 of another, nor the eager form of the truth. So the truth is computed: the eager form in float64, of the
   same float32 numbers, whose own error is 1e-9 of a float32 form's. The number passes if it is off the truth by at
   most ``MULTIPLE`` times the tensor's rounding error, plus its own jump.

The rounding error is that of the eager form, measured: it runs in float32 once as it is and ``RUNS`` times with every
operation's result moved by ``UNITS`` in the last place, up or down at random (Monte Carlo arithmetic, Parker 1997; see
``esper.tezzeret.stages.rounding``). Of every run the largest error in the tensor is taken, and of these the median; it
is at least the unit roundoff of the tensor's largest number. A number's own jump is the largest of its errors in those
runs: rounding decides on which side of a relu's edge a number falls, and there a derivative jumps for this number, not
for its neighbours. The median keeps one run's jump from allowing anything to the rest of the tensor.

That a result is as good as the arithmetic lets it be where it differs from the exact one by what rounding does anyway:
Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 1.5.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from esper.tezzeret.stages.forms import BlueprintForm, Goal, Subject
from esper.tezzeret.stages.refusal import require
from esper.tezzeret.stages.rounding import OtherRounding

TOLERANCE = 1e-5
"""Relative and absolute."""

MULTIPLE = 8.0
"""Times the eager form's rounding error. Operations are moved once, whatever number of terms they sum, and the native
program sums in other orders inside them: of 3,000 drawn documents the most that it needed was 4.5, by the gradient of a
shift before two batch norms of zeros, whose terms cancel to nothing after each has been magnified 10^5 times.
"""

UNITS, RUNS = 1.0, 8
"""Units in the last place by which results of operations are moved, and how often that is tried."""

Row = tuple[Tensor, Tensor, Tensor]
"""Parameters [n, P], buffers [n, R], features or tokens [n, B, ...]."""

Results = dict[str, Tensor]
"""By name, each [n, ...]: the output, losses, every new buffer, and gradients of every parameter and of the input."""


def results_of(form: BlueprintForm, subject: Subject, row: Row, goal: Goal) -> Results:
    """Everything that a form gives of a batch.

    Raises:
      ArtefactRefused: gradients or buffers that are no rows of the blueprint's.
    """
    trained = form.train(*row, goal)
    found = {"output": form.infer(*row), "losses": trained.losses}
    for what, layout, values in (
        ("new buffer", subject.buffer_layout, trained.buffers),
        ("gradient of", subject.layout, trained.params),
    ):
        rows = [row[0].shape[0], layout.size]
        require(list(values.shape) == rows, "shape", f"{what} all numbers {list(values.shape)}", f"{rows}")
        found |= {f"{what} {name!r}": each for name, each in layout.views(values).items()}
    return found if trained.inputs is None else {**found, "gradient of the input": trained.inputs}


class Reference:
    """The eager form of one batch: its results, and, if they are asked for, the exact ones and their errors.

    Attributes:
      results: of float32, or whatever the dtype is.
    """

    def __init__(self, eager: BlueprintForm, subject: Subject, row: Row, goal_of: Callable[[Tensor], Goal]) -> None:
        """What is compared with.

        Args:
          eager: the form that is right by definition.
          subject: the blueprint between its sites.
          row: the batch, and what networks are made of.
          goal_of: from the output to what gradients are taken of.
        """
        self._eager, self._subject, self._row = eager, subject, row
        self._goal = goal_of(eager.infer(*row))
        self.results = self._at(row, self._goal)

    @property
    def goal(self) -> Goal:
        """What gradients are taken of."""
        return self._goal

    def _at(self, row: Row, goal: Goal) -> Results:
        return results_of(self._eager, self._subject, row, goal)

    @cached_property
    def exact(self) -> Results:
        """In float64."""
        params, buffers, x = (each.double() if each.is_floating_point() else each for each in self._row)
        return self._at((params, buffers, x), self._goal._replace(weight=self._goal.weight.double()))

    @cached_property
    def errors(self) -> dict[str, Tensor]:
        """Of the eager form, by name of the result: [1 + RUNS, n, ...]."""
        runs = [self.results]
        for number in range(RUNS):
            with OtherRounding(number, UNITS):
                runs.append(self._at(self._row, self._goal))
        return {name: torch.stack([(run[name] - exact).abs() for run in runs]) for name, exact in self.exact.items()}

    def off(self, name: str, found: Tensor) -> float:
        """How far a result is off, in units of what is allowed; more than 1 is too far."""
        wanted = self.results[name]
        if not wanted.numel():
            return 0.0
        least = min(1.0, float(wanted.abs().max()))
        off = (found - wanted).abs()
        units = _ratio(off, TOLERANCE * (least + wanted.abs()))
        if float(units.max()) > 1:
            units = torch.minimum(units.double(), self._off_the_truth(name, found))
        return float(units.max())

    def _off_the_truth(self, name: str, found: Tensor) -> Tensor:
        errors = self.errors[name]
        rounding = max(float(errors.flatten(1).amax(1).median()), self._unit(name))
        return _ratio((found - self.exact[name]).abs(), MULTIPLE * rounding + errors.amax(0))

    def _unit(self, name: str) -> float:
        """The unit roundoff of a result's largest number."""
        return float(self.results[name].abs().max()) * torch.finfo(self.results[name].dtype).eps / 2


def _ratio(off: Tensor, allowed: Tensor) -> Tensor:
    """What is off nothing is within everything that is allowed."""
    return torch.where(off == 0, 0.0, off / allowed)
