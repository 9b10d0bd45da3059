"""How far numbers may be apart: what float32 makes of the same function passes, and a thousandth off does not."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from blueprint_generate import Made, documents
from torch import Tensor

from esper.kasmina.blueprint import preserving
from esper.kasmina.layers import linear
from esper.kasmina.layout import fan_in_uniform
from esper.kasmina.site import vector_site
from esper.tezzeret.blueprints import blueprint_of, parse
from esper.tezzeret.stages import ArtefactRefused, BlueprintForm, Subject, eager_form, form_of, subject_of, validate
from esper.tezzeret.stages.accuracy import MULTIPLE, TOLERANCE, Reference
from esper.tezzeret.stages.bounds import Bounds
from esper.tezzeret.stages.inputs import batch_of, goal_of, numbers_of

FREE = Bounds(slower=1e9, leak=1 << 40, runs=1)
CPU = torch.device("cpu")

Change = Callable[[Tensor], Tensor]


def subject_drawn(made: Made) -> Subject:
    return subject_of(
        blueprint_of(parse(made.data, "drawn")), made.source, made.target if made.table["bypass"] else None
    )


def told(form: BlueprintForm, subject: Subject, kind: str = "normal", samples: int = 16) -> Reference:
    numbers = numbers_of(subject, 2, torch.float32, CPU)
    batch = batch_of(subject, kind, samples, 2, numbers.params)
    row = (numbers.params, numbers.buffers, batch.x)
    return Reference(form, subject, row, lambda y: goal_of(subject, y, batch.targets))


def outputs(form: BlueprintForm, change: Change) -> BlueprintForm:
    return form._replace(infer=lambda *row: change(form.infer(*row)))


def trained(form: BlueprintForm, name: str, change: Change) -> BlueprintForm:
    def train(*given):
        gave = form.train(*given)
        return gave._replace(**{name: change(getattr(gave, name))})

    return form._replace(train=train)


def times(factor: float, place: slice = slice(None)) -> Change:
    def change(values: Tensor) -> Tensor:
        changed = values.clone()
        changed[:, place] *= factor
        return changed

    return change


def zeroed(values: Tensor) -> Tensor:
    """The second network's row is 0."""
    return torch.cat((values[:1], torch.zeros_like(values[1:])))


def tells(reference: Reference, name: str) -> bool:
    """Whether a result is more than rounding, by the exact one: a thousandth of it could be told."""
    rounding = float((reference.results[name] - reference.exact[name]).abs().max())
    return float(reference.exact[name].abs().max()) > max(1e-6, 1e5 * rounding)


def alive(subject: Subject, reference: Reference) -> Iterator[slice]:
    """Tensors whose gradient is more than rounding."""
    for param in subject.layout.params:
        if tells(reference, f"gradient of {param.name!r}"):
            yield subject.layout.columns(param.name)


def mutants(form: BlueprintForm, subject: Subject) -> Iterator[tuple[str, str, BlueprintForm]]:
    """What is wrong, the reason to refuse it, and the form."""
    yield "outputs a thousandth off", "wrong values", outputs(form, lambda y: 1.001 * y)
    yield "a zeroed row of outputs", "wrong values", outputs(form, zeroed)
    yield "losses a thousandth off", "wrong values", trained(form, "losses", lambda losses: 1.001 * losses)
    reference = told(eager_form(subject), subject)
    if "gradient of the input" in reference.results and tells(reference, "gradient of the input"):
        yield "an input's gradient a thousandth off", "wrong gradients", trained(form, "inputs", lambda g: 1.001 * g)
        yield "an input's gradient blocked", "blocked gradient", trained(form, "inputs", torch.zeros_like)
        yield "a zeroed row of input gradients", "wrong gradients", trained(form, "inputs", zeroed)
    tensors = list(alive(subject, reference))
    if tensors:
        yield "a zeroed row of gradients", "wrong gradients", trained(form, "params", zeroed)
    for columns in tensors:
        yield "a tensor's gradient a thousandth off", "wrong gradients", trained(form, "params", times(1.001, columns))
        yield "a tensor's gradient blocked", "blocked gradient", trained(form, "params", times(0.0, columns))


def refused(seed: int, count: int) -> tuple[Counter[str], list[str]]:
    """How many mutants of drawn documents were refused, each kind for its own reason; and what was not."""
    counts, missed = Counter[str](), list[str]()
    for made in documents(seed, count):
        subject = subject_drawn(made)
        for what, reason, mutant in mutants(form_of("native", subject, torch.float32, CPU), subject):
            try:
                validate(mutant, subject, bounds=FREE)
                missed.append(f"{made.table['name']}: {what}")
            except ArtefactRefused as error:
                if error.reason != reason:
                    missed.append(f"{made.table['name']}: {what}: {error}")
            counts[what] += 1
    return counts, missed


def test_mutants_of_drawn_documents_are_refused() -> None:
    counts, missed = refused(41, 8)
    assert not missed, missed
    assert len(counts) == 9 and sum(counts.values()) > 60


@pytest.mark.large
def test_mutants_of_many_drawn_documents_are_refused() -> None:
    counts, missed = refused(42, 300)
    sys.stdout.write(f"\n{sum(counts.values())} mutants of 300 documents, {len(missed)} not refused: {dict(counts)}\n")
    assert not missed, missed[:20]


def test_two_orders_of_a_sum_are_equally_exact() -> None:
    """Where much cancels no order of a sum is within the tolerance of another; each is as exact as the other."""
    width = 64
    params = lambda site: (fan_in_uniform("w", (width, width), width),)  # noqa: E731
    apply = lambda params, x: x + linear(x, 30 * params["w"])  # noqa: E731
    subject = subject_of(
        preserving("sum", frozenset({"vector"}), params, apply, lambda site: 2, 9.0), vector_site(width)
    )
    form = eager_form(subject)

    def backwards(params: Tensor, x: Tensor) -> Tensor:
        w = 30 * params.unflatten(1, (width, width))
        return x + (x.flip(2).unsqueeze(2) * w.flip(2).unsqueeze(1)).sum(3)

    reference = told(form, subject, "normal x 100", 32)
    numbers = numbers_of(subject, 2, torch.float32, CPU)
    x = batch_of(subject, "normal x 100", 32, 2, numbers.params).x
    other = backwards(numbers.params, x)
    apart = (other - reference.results["output"]).abs() / (1 + reference.results["output"].abs())
    assert float(apart.max()) > TOLERANCE, "the case shows nothing"
    assert reference.off("output", other) <= 1
    truth = reference.exact["output"]
    rounding = float((reference.results["output"] - truth).abs().max())
    allowed = rounding / reference.off("output", truth.float() + rounding)
    assert allowed < 20 * MULTIPLE * rounding < 1e-3 * float(truth.abs().max()), "rounding is allowed, and nothing else"
