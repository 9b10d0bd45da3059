"""Packages: canonical bytes, and every way in which bytes can be none."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.tezzeret.blueprints import canonical, shipped
from esper.tezzeret.stages import PackageError, unpack
from esper.tezzeret.stages.forms import subject_at
from esper.tezzeret.stages.frames import join, split
from esper.tezzeret.stages.package import MAGIC, describe, pack


def packed(name: str = "lora", site: str = "vector:8") -> bytes:
    document = shipped()[name]
    subject = subject_at(document, site)
    digest = hashlib.sha256(canonical(document)).hexdigest()
    return pack(document, subject, describe(subject) | {"document": digest, "key": "k", "b": 1, "a": [1.5, None]})


@pytest.mark.parametrize(
    ("name", "site"),
    [("lora", "vector:8"), ("conv8x2", "conv:1x8x8->logits:10"), ("transformer16x1", "tokens:8->logits:8x27")],
)
def test_what_is_packed_is_unpacked(name: str, site: str) -> None:
    data = packed(name, site)
    found = unpack(data)
    assert found.document == shipped()[name] and found.facts["site"] == site
    assert found.subject.blueprint.name == found.facts["blueprint"]
    assert pack(found.document, found.subject, found.facts) == data == packed(name, site), "one form"


def test_every_flipped_bit_is_refused_or_another_package() -> None:
    """Bytes that are read as a package again say something else, and so have another id."""
    data, good = packed(), unpack(packed())
    for place in range(0, len(data), 3):
        other = bytearray(data)
        other[place] ^= 1 << place % 8
        try:
            found = unpack(bytes(other))
        except PackageError as error:
            assert "\n" not in str(error)
        else:
            assert found != good


@pytest.mark.parametrize("cut", [0, 1, len(MAGIC), len(MAGIC) + 23, -1])
def test_what_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(PackageError):
        unpack(packed()[:cut])


def test_what_is_behind_is_refused() -> None:
    for data in (packed() + b"\0", b"", b"PK\3\4", MAGIC + b"\xff" * 24):
        with pytest.raises(PackageError, match="expected a package"):
            unpack(data)


def test_another_document_s_metadata_are_refused() -> None:
    document, tensors, facts = split(packed()[len(MAGIC) :], (1 << 20,) * 3)
    (other, _, _) = split(packed("conv_light", "conv:4x4x4")[len(MAGIC) :], (1 << 20,) * 3)
    for parts in ((other, tensors, facts), (document + b" ", tensors, facts), (document, b"\0" * 9, facts)):
        with pytest.raises(PackageError):
            unpack(MAGIC + join(parts))


@given(st.lists(st.binary(max_size=40), max_size=5))
@settings(max_examples=50)
def test_frames_are_what_was_joined(parts: list[bytes]) -> None:
    assert split(join(parts), [40] * len(parts)) == tuple(parts)
    if any(parts):
        with pytest.raises(ValueError):
            split(join(parts), [max(map(len, parts)) - 1] * len(parts))
