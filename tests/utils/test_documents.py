"""Documents as people and other programs write them, and what is written for every reader."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.config import SampleOrder
from esper.utils.documents import as_number, json_ready, one_line, read_document, shown, to_json

words = st.text(max_size=5)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words
trees = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(words, inner), max_leaves=12)


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


@given(trees)
def test_what_is_written_is_json_without_exceptions(tree):
    assert json.loads(to_json(tree), parse_constant=refuse) == json_ready(tree)


@given(st.floats())
def test_numbers_come_back(number):
    back = as_number(json.loads(to_json(number)))
    assert back == number or (math.isnan(back) and math.isnan(number))


def test_what_other_libraries_hand_over_is_written_as_numbers():
    given = {"a": np.int64(3), "b": np.float32(0.5), "c": (1, 2), "d": SampleOrder.SHARED, "e": np.float64("-inf")}
    assert json_ready(given) == {"a": 3, "b": 0.5, "c": [1, 2], "d": "shared", "e": "-inf"}
    with pytest.raises(TypeError, match="object has no form in JSON"):
        to_json({"a": object()})


READ = {
    "a mark in UTF-8": ("a.json", b'\xef\xbb\xbf{"rounds": 3}'),
    "a mark in UTF-8, TOML": ("a.toml", b"\xef\xbb\xbfrounds = 3\r\n"),
    "UTF-16, as a shell of Windows redirects": ("a.json", '\ufeff{"rounds": 3}'.encode("utf-16-le")),
    "UTF-16, the other way round": ("a.toml", "\ufeffrounds = 3".encode("utf-16-be")),
    "a suffix in capitals": ("A.JSON", b'{"rounds": 3}'),
}


@pytest.mark.parametrize("kind", READ)
def test_files_as_editors_write_them(kind, tmp_path):
    name, data = READ[kind]
    (tmp_path / name).write_bytes(data)
    assert read_document(tmp_path / name) == {"rounds": 3}


REFUSED = {
    "rounds: stands twice; expected once": ("a.json", b'{"rounds": 3, "lr": 1, "rounds": 4}'),
    "host_lr: stands twice; expected once": ("a.json", b'{"engine": {"host_lr": 3, "host_lr": 3}}'),
    "Cannot overwrite a value": ("a.toml", b"rounds = 3\nrounds = 4"),
    "nested too deeply": ("a.json", b"[" * 100_000),
    "can't decode": ("a.json", b"\xff\x00"),
    "expected at most 4000": ("a.json", b'{"rounds": ' + b"9" * 5000 + b"}"),
    "expected a .toml or .json file": ("a.yaml", b"rounds: 3"),
    "Is a directory": ("folder.json", None),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_read_is_one_line(reason, tmp_path):
    name, data = REFUSED[reason]
    (tmp_path / name).mkdir() if data is None else (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_document(tmp_path / name)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_value_of_any_length_is_shown_on_a_short_line():
    assert shown(7) == "7" and shown("x") == "'x'"
    assert shown(10**50_000) == f"an integer of {(10**50_000).bit_length()} bits"
    assert len(shown("y" * 1000)) < 80


@given(st.text())
def test_a_line_of_a_terminal_shows_what_it_cannot_print(text):
    line = one_line(text)
    assert line.isprintable() and (line == text) == text.isprintable()
    assert one_line(f"a{chr(10)}{chr(27)}[2J{chr(0x2028)}\udc80") == r"a\n\x1b[2J\u2028\udc80"
