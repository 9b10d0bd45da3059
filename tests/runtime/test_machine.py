"""What the bits of a run rest on: kept in its record, and compared when it goes on."""

import json

import pytest
import torch

from esper.runtime.machine import VERSIONS, machine, moved

CPU = torch.device("cpu")


@pytest.mark.parametrize("changed", ["threads", "torch_build", "instructions", "device"])
def test_another_machine_is_told_in_one_line(tmp_path, changed):
    before = machine(CPU)
    assert before["threads"] == str(torch.get_num_threads()) and before["device"] == "cpu"
    (tmp_path / VERSIONS).write_text(json.dumps(before))
    assert moved(tmp_path, CPU) == []
    (tmp_path / VERSIONS).write_text(json.dumps(before | {changed: "another"}))
    (line,) = moved(tmp_path, CPU)
    assert f"{changed} another, now {before[changed]}" in line and line.count("\n") == 1 and line.endswith("\n")


@pytest.mark.parametrize("text", [None, "", "[]", '{"torch": "1"}', '{"threads'])
def test_a_record_that_cannot_tell_tells_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / VERSIONS).write_text(text)
    assert moved(tmp_path, CPU) == []
