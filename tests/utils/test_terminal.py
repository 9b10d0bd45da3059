"""Standard output in every encoding."""

import gc
import io
import sys

import pytest

from esper.utils.terminal import output

TEXT = "██░ 58.0 ± 0.9 …\nnaïve 数 \udcff\n"


@pytest.mark.parametrize("code", ["ascii", "cp1252", "cp437", "utf-8", "utf-16", "shift_jis"])
def test_whatever_is_written_arrives(code):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=code, newline="\n")
    out = output(stream)
    assert out.write(TEXT) == len(TEXT)
    out.flush()
    found = stream.buffer.getvalue().decode(code)
    assert found.count("\n") == 2 and "58.0" in found and "na" in found
    assert ("██░" in found) == (code not in ("ascii", "cp1252", "shift_jis")) or "##." in found
    assert "±" in found or "58.0 +/- 0.9 ..." in found


def test_nothing_changes_where_everything_can_be_written():
    stream = io.StringIO()
    output(stream).write("± …")
    assert stream.getvalue() == "± …"
    assert output(output(stream)).stream is stream


def test_standard_output_is_looked_up_when_it_is_asked_for(monkeypatch):
    for _ in range(2):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stdout", stream)
        output().write("here")
        assert stream.getvalue() == "here"
    monkeypatch.setattr(sys, "stdout", None)  # a process without a console
    output().write("nowhere")


def test_what_wraps_a_stream_neither_closes_it_nor_minds_that_it_is_closed(monkeypatch):
    stream, complaints = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with output(stream) as out:
        out.write("here")
    stream.flush()
    assert stream.buffer.getvalue() == b"here"
    stream.close()
    out.close()
    del out  # which closes it once more
    gc.collect()
    assert complaints == []
