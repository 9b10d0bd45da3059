"""From an id in a store to a blueprint that is ready to grow: a checked package, compiled again or found compiled.

Compiled code is taken only from this store, where its row stands in the index, its bytes match their hash, and it was
made for the same document, site, versions, build and processor; otherwise the document is compiled again here, and
what comes of it is validated as it was the first time. Nothing is put in the place of what cannot be had.
"""

from typing import Any, NamedTuple

import torch

from esper.kasmina.blueprint import Blueprint
from esper.leyline.config import ConfigError
from esper.tezzeret.backend import BackendError
from esper.tezzeret.blueprints import canonical
from esper.tezzeret.stages.admission import note_valid
from esper.tezzeret.stages.building import ALONE, form_of
from esper.tezzeret.stages.forms import BlueprintForm, Subject
from esper.tezzeret.stages.native_form import form_of_code, from_bytes
from esper.tezzeret.stages.package import CODE, KIND, BlueprintPackage, PackageError, unpack
from esper.tezzeret.stages.request import DTYPES, CompileJob, key_text
from esper.tezzeret.stages.validation import validate
from esper.urza.store import Artefact, Failure, Tiers
from esper.utils.documents import cause


class ReadyBlueprint(NamedTuple):
    """A blueprint that was fetched.

    Attributes:
      id: of its package.
      blueprint: for a task; at other sites than the one that it was compiled for it is what its document says.
      subject: the blueprint at its site.
      facts: metadata.
      form: compiled.
      cached: whether the compiled code was taken from the store.
    """

    id: str
    blueprint: Blueprint
    subject: Subject
    facts: dict[str, Any]
    form: BlueprintForm
    cached: bool


class _Lost(Exception):
    """There is none; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


def fetch(store: Tiers, id: str) -> ReadyBlueprint | Failure:
    """A blueprint by its id, ready; kept in the store's memory for the next who asks.

    Args:
      store: where it is.
      id: of its package.

    Returns:
      the blueprint; or why there is none: unknown, foreign (no package of a blueprint), unvalidated, damaged, or
      unavailable (services are lost, or this machine cannot run what it was compiled for).
    """

    def make() -> ReadyBlueprint:
        return _made(store, id)

    try:
        ready: ReadyBlueprint = store.ready.get(f"{id}/ready", make, _weigh)
    except _Lost as lost:
        return lost.failure
    return ready


def _weigh(ready: ReadyBlueprint) -> int:
    return len(ready.form.code) + 8 * (ready.subject.layout.size + ready.subject.buffer_layout.size)


def _made(store: Tiers, id: str) -> ReadyBlueprint:
    found = store.get(id, KIND)
    if isinstance(found, Failure):
        raise _Lost(found)
    try:
        package = unpack(found.data, id[:16])
        subject = package.subject
    except PackageError as error:
        raise _Lost(Failure("foreign", str(error))) from None
    facts = package.facts
    if facts.get("dtype") not in DTYPES or not isinstance(facts.get("backend"), str):
        raise _Lost(Failure("foreign", f"{id}: metadata without a dtype or a backend; expected both"))
    try:
        taken = _taken(store, package, subject)
        form = taken or _compiled(subject, facts)
    except (ConfigError, RuntimeError, OSError) as error:
        raise _Lost(Failure("unavailable", f"{id}: {cause(error)}")) from None
    note_valid(package.document, subject, form.backend, DTYPES[facts["dtype"]], torch.device(_device_of(facts)))
    return ReadyBlueprint(id, subject.blueprint, subject, facts, form, taken is not None)


def _taken(store: Tiers, package: BlueprintPackage, subject: Subject) -> BlueprintForm | None:
    """The form of compiled code in the store, if there is some for this machine."""
    facts = package.facts
    if facts["backend"] != "native" or facts.get("key") != _key_here(package):
        return None
    for entry in reversed(store.list(kind=CODE, key=facts["key"])):
        code = store.get(entry.id, CODE)
        if isinstance(code, Artefact):
            try:
                return form_of_code(subject, *from_bytes(code.data))
            except ValueError:
                continue
    return None


def _key_here(package: BlueprintPackage) -> str | None:
    """The key that the package's request has on this machine, of the backends that it may have asked for."""
    facts, document = package.facts, canonical(package.document)
    asked = (CompileJob(document, "", facts["site"], facts["dtype"], backend) for backend in ("auto", "native"))
    keys = [key_text(each, document) for each in asked]
    return facts["key"] if facts.get("key") in keys else None


def _device_of(facts: dict[str, Any]) -> str:
    """The type of the device that it was compiled for."""
    device = facts.get("device")
    return "cuda" if isinstance(device, dict) and device.get("device") == "cuda" else "cpu"


def _compiled(subject: Subject, facts: dict[str, Any]) -> BlueprintForm:
    """Compiled again, for the backend that it was compiled for, and validated.

    Raises:
      BackendError, ArtefactRefused: it cannot be, here.
    """
    device = torch.device(_device_of(facts))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("compiled for CUDA; expected a machine that has it")
    dtype = DTYPES[facts["dtype"]]
    with ALONE:
        form = form_of(facts["backend"], subject, dtype, device)
        validate(form, subject, dtype, device)
    return form
