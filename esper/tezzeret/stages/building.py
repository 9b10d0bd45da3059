"""Stages 3 to 6 in this process: from a document whose shapes are known to a package, or to the stage that failed."""

import datetime
import hashlib
import threading
import time
from typing import Any, NamedTuple

import torch

from esper.kasmina.checks import BlueprintError, check_blueprint
from esper.tezzeret.backend import BackendError
from esper.tezzeret.blueprints import Document, canonical
from esper.tezzeret.stages.forms import BlueprintForm, Subject, eager_form, subject_at
from esper.tezzeret.stages.inductor_form import inductor_form
from esper.tezzeret.stages.inputs import BATCHES, NETWORKS, batch_of, numbers_of
from esper.tezzeret.stages.native_form import native_form
from esper.tezzeret.stages.package import describe, pack
from esper.tezzeret.stages.profile import Effort, profile
from esper.tezzeret.stages.refusal import ArtefactRefused
from esper.tezzeret.stages.reports import STAGES, VALIDATION, ReportLog, StageFailed
from esper.tezzeret.stages.request import DTYPES, FORMAT, CompileJob, device_facts, versions
from esper.tezzeret.stages.validation import validate
from esper.tezzeret.stages.variants import Variant, optimize, variants

FLAGS = {"native": ["-O3", "-ffp-contract=fast", "float32"], "inductor": ["fullgraph", "static batch"], "eager": []}
"""What metadata say of how each backend compiles."""


ALONE = threading.RLock()
"""Held by the thread that builds or validates: time and memory of others in this process would be taken for its own."""


class Work(NamedTuple):
    """What is being built.

    Attributes:
      request: what was asked.
      document: what it says.
      subject: its blueprint, between sites.
      key: of the request.
      effort: of the profile.
    """

    request: CompileJob
    document: Document
    subject: Subject
    key: str
    effort: Effort = Effort()

    @property
    def dtype(self) -> torch.dtype:
        """Of numbers."""
        return DTYPES[self.request.dtype]

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.request.device)


class Built(NamedTuple):
    """What was built.

    Attributes:
      package: the portable artefact.
      code: compiled code for the cache; empty if there is none.
    """

    package: bytes
    code: bytes


def work_of(request: CompileJob, document: Document, key: str) -> Work:
    """The work on a request whose site is known."""
    return Work(request, document, subject_at(document, request.site), key)


def build(work: Work, log: ReportLog) -> Built:
    """Run stages 3 to 6; one thread of a process at a time.

    Args:
      work: what is to be built.
      log: where reports go.

    Raises:
      StageFailed: the stage that did not pass; its report is the log's last.
    """
    with ALONE:
        return _build(work, log)


def _build(work: Work, log: ReportLog) -> Built:
    compiled, ways, checked = _compiled(work, log)
    with log.stage(STAGES[4]) as facts:
        forms = {way: compiled if way.backend == compiled.backend else eager_form(work.subject) for way in ways}
        profiles = {
            way: profile(form, work.subject, work.dtype, work.device, work.effort) for way, form in forms.items()
        }
        chosen = optimize({way: found["train_ms"] for way, found in profiles.items()})
        facts |= {"way": chosen.name, **profiles[chosen]}
    form, timings = forms[chosen], {way.name: found["train_ms"] for way, found in profiles.items()}
    with log.stage(STAGES[5]) as packed:
        about = _metadata(work, form, chosen) | {"profile": profiles[chosen], "ways": timings, "validation": checked}
        package = pack(work.document, work.subject, about)
        packed |= {"bytes": len(package), "sha256": hashlib.sha256(package).hexdigest()}
    return Built(package, form.code)


def _compiled(work: Work, log: ReportLog) -> tuple[BlueprintForm, tuple[Variant, ...], dict[str, float]]:
    """The first backend's form that is compiled and valid; ``auto`` passes over what cannot be compiled, or is slow."""
    begun, passed_over = len(log.reports), dict[str, str]()
    *others, last = work.request.backends
    for backend in (*others, last):
        del log.reports[begun:]
        try:
            return _compiled_by(backend, work, log, passed_over)
        except StageFailed as error:
            report = error.report
            if backend == last or not (report.stage == STAGES[2] or report.reason == "slow"):
                raise
            passed_over[backend] = report.found
    raise AssertionError("there is a last backend")


def _compiled_by(
    backend: str, work: Work, log: ReportLog, passed_over: dict[str, str]
) -> tuple[BlueprintForm, tuple[Variant, ...], dict[str, float]]:
    with log.stage(STAGES[2]) as facts:
        form = form_of(backend, work.subject, work.dtype, work.device)
        facts |= {"backend": backend, "dtype": work.request.dtype, **form.facts}
        facts |= {f"passed over {name}": why for name, why in passed_over.items()}
    with log.stage(STAGES[3]) as facts:
        choices = variants(backend, work.device, work.request.backend == "auto")
        facts |= {
            "cpu": device_facts(work.request.device).get("instruction_set") or "any",
            "ways": "; ".join(way.name for way in choices),
        }
        facts |= {"cuda": "skipped: no CUDA"} if not torch.cuda.is_available() else {}
        facts |= {"choices": len(choices)}
    with log.stage(VALIDATION) as checked:
        check_contract(work.subject)
        checked |= validate(form, work.subject, work.dtype, work.device)
    return form, choices, dict(checked)


def check_contract(subject: Subject) -> None:
    """The eager form keeps the contract of blueprints: ``esper.kasmina.checks``.

    Raises:
      ArtefactRefused: it does not.
    """
    try:
        target = subject.target if subject.is_bypass else None
        check_blueprint(subject.blueprint, subject.source, target, starts_alive=False)
    except BlueprintError as error:
        found, _, expected = str(error).partition("; expected ")
        raise ArtefactRefused("contract", found, expected or "the contract of blueprints") from None


def form_of(backend: str, subject: Subject, dtype: torch.dtype, device: torch.device) -> BlueprintForm:
    """A backend's form.

    Raises:
      BackendError: it cannot run this, there.
    """
    if backend == "eager":
        return eager_form(subject)
    if backend == "native":
        if device.type != "cpu" or dtype != torch.float32:
            raise BackendError(f"backend 'native': {dtype} on {device.type}; expected float32 on a CPU")
        return native_form(subject)
    numbers = numbers_of(subject, NETWORKS, dtype, device)
    row = (numbers.params, numbers.buffers)
    batches = [batch_of(subject, "normal", samples, NETWORKS, numbers.params).x for samples in BATCHES]
    return inductor_form(subject, device, tuple((*row, x) for x in batches))


def _metadata(work: Work, form: BlueprintForm, chosen: Variant) -> dict[str, Any]:
    request = work.request
    return {
        **describe(work.subject),
        "format": FORMAT,
        "document": hashlib.sha256(canonical(work.document)).hexdigest(),
        "key": work.key,
        "dtype": request.dtype,
        "backend": form.backend,
        "device": device_facts(request.device),
        "versions": versions(),
        "flags": FLAGS[form.backend],
        "choice": {"mode": chosen.mode, "memory_format": chosen.memory_format, "captured": chosen.captured},
        "memory_bytes": 4 * (work.subject.layout.size + work.subject.buffer_layout.size),
        "created": datetime.datetime.fromtimestamp(time.time(), datetime.UTC).isoformat(timespec="seconds"),
    }
