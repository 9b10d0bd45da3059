"""Documents that are drawn: all that are valid go through the stages, and nothing is stored of any that is broken.

Their validity is judged elsewhere, by the published schema and another rendering (``tests/tezzeret/blueprints``).
"""

import copy
import random
import statistics
import sys
import time

import pytest
import torch
from blueprint_broken import BREAKS
from blueprint_generate import Made, documents
from blueprint_judge import Judge

from esper.tezzeret.blueprints import blueprint_of, canonical, parse, shipped
from esper.tezzeret.blueprints.site_words import words_of
from esper.tezzeret.stages import (
    NAMES,
    ArtefactRefused,
    CompileJob,
    CompilerChild,
    StageReport,
    compile_document,
    form_of,
    subject_of,
    validate,
)
from esper.tezzeret.stages.bounds import Bounds
from esper.tezzeret.stages.building import build, work_of
from esper.tezzeret.stages.pipeline import examine
from esper.tezzeret.stages.profile import Effort
from esper.tezzeret.stages.reports import VALIDATION, ReportLog, StageFailed
from esper.urza.store import Tiers
from esper.utils import rng

QUICK = Effort(warm=1, runs=3)


def say(line: str) -> None:
    """For whoever asks for large counts with ``-s``."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def job_of(made: Made, **words: str) -> CompileJob:
    return CompileJob(made.data, made.table["name"], words_of(made.source, made.target), **words)


def through(made: Made, off: list[float] | None = None) -> StageReport:
    """The last report of stages 1 to 6 on native, measured with little effort; ``off`` takes what was off, too."""
    log = ReportLog()
    try:
        document, job, key = examine(job_of(made, backend="native"), log)
        build(work_of(job, document, key)._replace(effort=QUICK), log)
    except StageFailed as error:
        return error.report
    if off is not None:
        facts = next(report.facts for report in log.reports if report.stage == VALIDATION)
        off += [facts["outputs"], facts["gradients"]]
    assert [report.stage for report in log.reports] == list(NAMES[:-1])
    return log.reports[-1]


def is_dead(made: Made) -> bool:
    """Whether, by the independent rendering, no features from behind a relu, 0 and more, reach the output.

    ``relu`` of the opposite of such features is an example, and a norm over groups of one number.
    """
    if made.source.kind == "tokens":
        return False
    judge = Judge(made.table, made.source, made.target).double().train()
    for number, value in enumerate(judge.own.values()):
        value.data = rng.normal(rng.fold_in(rng.key(7), number), tuple(value.shape), torch.float64)
    judge.held = {name: value.double() for name, value in judge.held.items()}
    x = rng.normal(rng.key(8), (16, *made.source.shape), torch.float64).abs().requires_grad_()
    y = judge(x)
    (slope,) = torch.autograd.grad((y * rng.normal(rng.key(9), tuple(y.shape), torch.float64)).sum(), x)
    return float(slope.abs().max()) < 1e-12


DEAD = "found a zero gradient to its input"


@pytest.mark.parametrize("number", range(20))
def test_drawn_documents_go_through_on_native(number: int) -> None:
    report = through(list(documents(31, 20))[number])
    assert report.passed, report.line


@pytest.mark.large
def test_three_thousand_drawn_documents_go_through_on_native() -> None:
    begun, failed, worst, dead = time.perf_counter(), [], [0.0], 0
    for number, made in enumerate(documents(32, 3000)):
        report = through(made, worst)
        if number % 100 == 99:
            say(f"{number + 1} documents, {len(failed)} failed, {time.perf_counter() - begun:.0f} s")
        if not report.passed:
            useless = DEAD in report.line and is_dead(made)
            dead += useless
            failed += [] if useless else [f"{made.table['name']}: {report.line}"]
    seconds = time.perf_counter() - begun
    say(f"3000 documents, {len(failed)} failed, {seconds:.0f} s; at most {max(worst):.2f} of what is allowed")
    say(f"{dead} of them refused because no gradient flows, which the other rendering says, too")
    say("\n".join(failed))
    assert not failed, failed[:20]
    assert dead < 10


@pytest.mark.large
@pytest.mark.compiled
def test_twenty_drawn_documents_agree_with_inductor() -> None:
    """The compiled functions, on every batch; minutes of compilation."""
    begun, worst = time.perf_counter(), []
    for made in documents(33, 20):
        subject = subject_of(
            blueprint_of(parse(made.data, "drawn")), made.source, made.target if made.table["bypass"] else None
        )
        form = form_of("inductor", subject, torch.float32, torch.device("cpu"))
        found = validate(form, subject, bounds=Bounds(slower=1e9))
        worst.append(max(found["outputs"], found["gradients"]))
    seconds = time.perf_counter() - begun
    say(f"20 documents through Inductor in {seconds:.0f} s, at most {max(worst):.2f} of the tolerance")
    assert len(worst) == 20


def test_nothing_is_stored_of_broken_ones(store: Tiers) -> None:
    (made,) = documents(34, 1)
    for number, name in enumerate(BREAKS):
        broken = BREAKS[name](copy.deepcopy(made.table), random.Random(number))
        id, reports = compile_document(job_of(made)._replace(document=broken.data), store)
        last = reports[-1]
        assert id is None and not last.passed and len(reports) == {"parse": 1, "graph": 2}[broken.stage], last.line
        assert broken.words in f"{last.line}; expected {last.expected}", (last.line, broken.words)
        assert "\n" not in last.line
    assert store.list() == () and len(BREAKS) > 30


@pytest.mark.large
def test_what_compiling_shipped_documents_takes(store: Tiers) -> None:
    """Cold, in a child that has started; and found again. The library itself is built once per machine."""
    cold, cached = list[float](), list[float]()
    with CompilerChild() as child:
        begun = time.perf_counter()
        compile_document(CompileJob(canonical(shipped()["lora"]), "lora", "vector:5", backend="native"), store, child)
        started = time.perf_counter() - begun
        for name, document in shipped().items():
            job = CompileJob(canonical(document), name, backend="native")
            for taken in (cold, cached):
                begun = time.perf_counter()
                id, reports = compile_document(job, store, child)
                taken.append(time.perf_counter() - begun)
                assert id is not None, reports[-1].line
    p95 = statistics.quantiles(cold, n=20)[-1]
    say(
        f"{len(cold)} documents on native: cold median {statistics.median(cold):.2f} s, p95 {p95:.2f} s, most "
        f"{max(cold):.2f} s; the child's start and one more {started:.2f} s; cached at most {max(cached):.3f} s"
    )
    assert p95 < 5 and max(cached) < 0.15


def test_a_document_that_cannot_be_what_it_says_is_refused() -> None:
    """A generator that draws only what passes would show nothing: an altered form of a drawn one is refused."""
    made = next(each for each in documents(31, 20) if each.table["cases"][0]["source"] == ["vector"])
    subject = subject_of(
        blueprint_of(parse(made.data, "drawn")), made.source, made.target if made.table["bypass"] else None
    )
    form = form_of("native", subject, torch.float32, torch.device("cpu"))
    shifted = form._replace(infer=lambda *row: form.infer(*row) + 1e-3)
    with pytest.raises(ArtefactRefused, match="wrong values"):
        validate(shifted, subject)
