"""Stage 6: the portable artefact, which is what travels and is trusted: a document, given numbers, and metadata.

    "esper blueprint 1" and a line feed, three lengths (8 bytes each, big-endian), then so many bytes of
      the document         canonical JSON
      the given numbers    safetensors, float64, by name of the parameter; nothing where there are none
      the metadata         canonical JSON

It holds no code. Whoever has it compiles the document again, or takes compiled code from a cache beside it.
"""

import hashlib
import json
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from esper.leyline.config import ConfigError
from esper.tezzeret.blueprints import LIMITS, Document, DocumentError, canonical, parse
from esper.tezzeret.blueprints.site_words import words_of
from esper.tezzeret.stages.forms import Subject, subject_at
from esper.tezzeret.stages.frames import join, split
from esper.utils.documents import json_ready

MAGIC = b"esper blueprint 1\n"

KIND, CODE = "blueprint", "code"
"""The facts ``kind`` of packages and of compiled code in a store."""

LARGEST = (LIMITS.bytes, 1 << 28, 1 << 20)
"""Bytes of each part, at most."""


class PackageError(ConfigError):
    """Bytes that are no package; one line."""


class BlueprintPackage(NamedTuple):
    """A portable artefact.

    Attributes:
      document: what kind of seed.
      facts: metadata.
    """

    document: Document
    facts: dict[str, Any]

    @property
    def subject(self) -> Subject:
        """The blueprint at the site that it was compiled for."""
        return subject_at(self.document, self.facts["site"])


def pack(document: Document, subject: Subject, facts: dict[str, Any]) -> bytes:
    """The bytes of a package."""
    given = _given(subject)
    parts = (canonical(document), safetensors.torch.save(given) if given else b"", _json(facts))
    return MAGIC + join(parts)


def unpack(data: bytes, place: str = "package") -> BlueprintPackage:
    """What ``pack`` wrote, checked: the document is canonical and valid, the numbers are those that it gives.

    Raises:
      PackageError: anything is not as ``pack`` writes it.
    """
    if not data.startswith(MAGIC):
        raise PackageError(f"{place}: begins with {data[:8]!r}; expected a package of a blueprint")
    try:
        document, tensors, metadata = split(data[len(MAGIC) :], LARGEST)
        parsed = parse(document, place)
        facts = json.loads(metadata)
        if canonical(parsed) != document or not isinstance(facts, dict) or _json(facts) != metadata:
            raise ValueError("a form that is not canonical")
        found = BlueprintPackage(parsed, facts)
        if facts.get("document") != hashlib.sha256(document).hexdigest() or not isinstance(facts.get("site"), str):
            raise ValueError("metadata of another document")
        _expect_equal(_given(found.subject), safetensors.torch.load(tensors) if tensors else {})
    except (DocumentError, ConfigError, SafetensorError, ValueError, RecursionError) as error:
        raise PackageError(f"{place}: {error}; expected a package of a blueprint") from None
    return found


def _given(subject: Subject) -> dict[str, Tensor]:
    """The numbers that a document gives, by parameter."""
    rows = (*subject.layout.params, *subject.buffer_layout.params)
    return {row.name: row.given.values.double().contiguous() for row in rows if row.given is not None}


def _expect_equal(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    alike = wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    if not alike:
        raise ValueError("given numbers that are not the document's")


def _json(facts: dict[str, Any]) -> bytes:
    return json.dumps(json_ready(facts), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def describe(subject: Subject) -> dict[str, Any]:
    """Metadata that follow from a blueprint and its sites."""
    return {
        "blueprint": subject.blueprint.name,
        "site": words_of(subject.source, subject.target),
        "input_shape": list(subject.source.shape),
        "output_shape": list(subject.target.shape),
        "parameters": subject.layout.size,
        "buffers": subject.buffer_layout.size,
    }
