"""The command ``esper blueprint``."""

import json
from pathlib import Path

import pytest

from esper.__main__ import main
from esper.tezzeret.blueprints import canonical, parse, shipped
from esper.tezzeret.blueprints.published_schema import schema


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["blueprint", *words]) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def test_all_that_is_shipped_is_listed_exported_and_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    listed = said(capsys, "list").splitlines()
    assert [line.split()[0] for line in listed] == sorted(shipped())
    for name in ("conv_heavy", "conv8x2", "transformer16x1"):
        path = tmp_path / f"{name}.json"
        assert said(capsys, "export", name, "--to", str(path)) == f"{path}\n"
        assert said(capsys, "export", name) == path.read_text()
        assert parse(path.read_bytes(), name) == shipped()[name]
        lines = said(capsys, "check", str(path)).splitlines()
        assert lines[1].startswith("1 parse  passed") and lines[2].startswith("2 graph  passed")


def test_check_says_shapes_and_costs_at_a_site(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(said(capsys, "check", "conv_light", "--site", "conv:8x4x4", "--json"))
    assert (facts["params"], facts["flops"], facts["site"]) == (592, 16 * 9 * 64, "conv:8x4x4")
    assert [node["shape"] for node in facts["nodes"]] == [[8, 4, 4]] * 4
    words = said(capsys, "check", "probe", "--site", "conv:1x8x8->logits:10")
    assert "650 parameters" in words and "640 FLOPs" in words


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(said(capsys, "schema")) == schema()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("check", "nowhere.json"), "no such file"),
        (("check", "conv_light", "--site", "sound:8"), "expected conv:CxHxW"),
        (("check", "conv_light", "--site", "vector:8"), "graph: no case for vector [8]; expected conv at one point"),
        (("export", "lor"), "expected bottleneck"),
        (("compose",), "expected list, export, check"),
        (("export", "lora", "--to", "/nowhere/at/all.json"), "expected a place that can be written to"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = said(capsys, *words, status=2)
    assert line.startswith("esper blueprint: ") and expected in line and line.count("\n") == 1


def test_a_broken_file_is_named_with_stage_and_node(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(canonical(shipped()["lora"]).replace(b'"linear"', b'"bilinear"', 1))
    line = said(capsys, "check", str(path), status=2)
    assert f"{path}: parse: low: op 'bilinear'; expected 'linear'" in line
