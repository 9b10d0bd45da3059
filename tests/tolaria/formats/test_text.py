"""Text: strict UTF-8, one kind of line end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria.data import DatasetError
from esper.tolaria.formats import text as module
from esper.tolaria.formats.text import text

CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0\r\ufeff")


@given(content=st.text(CHARACTERS, min_size=2))
def test_any_text_reads_back(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(content.encode("utf-8"))
    assert text(path) == content


@given(
    lines=st.lists(st.text(CHARACTERS.filter(lambda c: c != "\n")), min_size=3),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=1),
)
def test_lines_end_in_one_way(tmp_path_factory, lines, ends):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes("".join(f"{line}x{ends[n % len(ends)]}" for n, line in enumerate(lines)).encode())
    assert text(path) == "".join(f"{line}x\n" for line in lines)


def test_a_byte_order_mark_is_dropped_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfab\xef\xbb\xbf")
    assert text(path) == "\ufeffab\ufeff"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"file: found 0 bytes, expected 1 to {2**28} bytes"),
        (b"a", "text: found 1 characters, expected at least 2"),
        (b"\xef\xbb\xbfa", "text: found 1 characters, expected at least 2"),
        (b"\r\n", "text: found 1 characters, expected at least 2"),
        ("née\n".encode("latin-1"), "byte 1: found 0xE9 (invalid continuation byte), expected UTF-8"),
        ("ab".encode("utf-16"), "byte 0: found 0xFF (invalid start byte), expected UTF-8"),
        ("ab".encode("utf-16-le"), "byte 1: found NUL (0x00), expected text without NUL"),
        ("é".encode() + b"\xe2\x82", "byte 2: found 0xE2 (unexpected end of data), expected UTF-8"),
        (b"ab\xed\xa0\x80", "byte 2: found 0xED (invalid continuation byte), expected UTF-8"),
        (b"\xef\xbb\xbf\xc0\x80", "byte 3: found 0xC0 (invalid start byte), expected UTF-8"),
    ],
)
def test_errors_name_file_place_and_what_was_expected(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as error:
        text(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_text_of_absurd_size_is_not_read(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(module.MAX_BYTES + 1)
    with pytest.raises(DatasetError, match=r"a\.txt: file: found 268435457 bytes, expected 1 to 268435456 bytes"):
        text(path)
