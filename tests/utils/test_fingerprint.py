"""Fingerprints against hashlib on bytes laid out by hand, and what they must and must not tell apart."""

import hashlib
import struct

import torch
from tensordict import TensorDict

from esper.utils.fingerprint import LENGTH, link, row_fingerprints, tables_of


def test_a_rows_digest_is_that_of_its_bytes():
    tables = {"b": torch.tensor([[1, -2], [3, 4]]), "a": torch.tensor([0.5, -0.0]), "c": torch.tensor([True, False])}
    head = b"a torch.float32 []\nb torch.int64 [2]\nc torch.bool []\n"
    rows = [struct.pack("<fqq?", 0.5, 1, -2, True), struct.pack("<fqq?", -0.0, 3, 4, False)]
    assert row_fingerprints(tables) == [hashlib.sha256(head + row).digest() for row in rows]


def test_a_digest_is_of_its_row_alone_and_of_every_bit():
    x = torch.tensor([[0.0, 1.0], [torch.nan, torch.inf], [-0.0, 1.0]])
    found = row_fingerprints({"x": x})
    assert len(set(found)) == 3  # zeros of either sign are told apart
    assert row_fingerprints({"x": x[[2, 1]]}) == [found[2], found[1]]
    assert row_fingerprints({"x": x.T.contiguous().T}) == found
    assert row_fingerprints({"y": x}) != found and row_fingerprints({"x": x.double()}) != found
    assert row_fingerprints({"x": torch.zeros(2, 0)})[0] == hashlib.sha256(b"x torch.float32 [0]\n").digest()
    assert row_fingerprints({}) == []


def test_tables_are_named_by_their_path():
    tree = TensorDict({"a": torch.ones(2), "b": TensorDict({"c": torch.zeros(2)}, [2])}, [2])
    assert sorted(tables_of(tree)) == ["a", "b.c"]


def test_a_link_holds_the_chain_before_it():
    first = link("", b"one", b"two")
    assert first == hashlib.sha256(b"onetwo").hexdigest()[:LENGTH]
    assert link(first, b"three") == hashlib.sha256(first.encode() + b"three").hexdigest()[:LENGTH]
