"""Admission of documents into an engine: what they became on its backend is validated at every site where they may sit.

What was validated once in this process, or was fetched from a store that says so, is not validated again.
"""

import torch

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.site import Site
from esper.kasmina.structure import Structure
from esper.leyline.config import ConfigError
from esper.tezzeret.blueprints import Document
from esper.tezzeret.stages.building import ALONE, check_contract, form_of
from esper.tezzeret.stages.forms import Subject, subject_of
from esper.tezzeret.stages.refusal import ArtefactRefused
from esper.tezzeret.stages.validation import validate

_ADMITTED: set[tuple[Document, Site, Site, str, torch.dtype, str]] = set()
"""What was found valid: document, sites, backend, dtype, type of the device."""


def document_of(blueprint: Blueprint) -> Document | None:
    """The document that a blueprint was made from; None of one that was written in Python."""
    found = getattr(blueprint.train, "document", None)
    return found if isinstance(found, Document) else None


def note_valid(document: Document, subject: Subject, backend: str, dtype: torch.dtype, device: torch.device) -> None:
    """Note that a document's form was validated."""
    _ADMITTED.add((document, subject.source, subject.target, backend, dtype, device.type))


def admit(structure: Structure, backend: str, device: torch.device) -> None:
    """Validate the documents among an engine's blueprints.

    Args:
      structure: slots, and what may sit in them.
      backend: by which they run. Of Inductor, which compiles for minutes, the eager form's contract is checked here,
        and the compiled form where it is compiled: in the stages, before a package is stored.
      device: where.

    Raises:
      ConfigError: one is not valid; one line with the blueprint, the slot and the reason.
    """
    dtype = structure.config.precision.dtype
    for number, slot in enumerate(structure.slots):
        for kind in slot.offers:
            blueprint = structure.blueprints[kind]
            document = document_of(blueprint)
            known = (document, slot.reads, slot.acts, backend, dtype, device.type)
            if document is None or known in _ADMITTED:
                continue
            subject = subject_of(blueprint, slot.reads, slot.acts if slot.is_bypass else None)
            try:
                with ALONE:
                    check_contract(subject)
                    if backend in ("native", "eager"):
                        validate(form_of(backend, subject, dtype, device), subject, dtype, device)
            except ArtefactRefused as error:
                raise ConfigError(f"blueprint {blueprint.name!r} in slot {number}: {error}") from None
            note_valid(document, subject, backend, dtype, device)
