"""What people are told of bypasses: the listing, an inspected episode, a report; and slots on the command line."""

import io
import json
from pathlib import Path

import pytest
import torch

import esper
import esper.__main__
from esper.kasmina.bypass_blueprints import CONV4X2, CONV8X2, PROBE
from esper.kasmina.conv_blueprints import CONV_LIGHT
from esper.kasmina.host import Host, plain_block
from esper.kasmina.layers import linear
from esper.kasmina.layout import constant
from esper.kasmina.site import Site, token_site, vector_site
from esper.kasmina.token_bypasses import TRANSFORMER16
from esper.leyline.actions import Blend
from esper.leyline.config import ConfigError
from esper.runtime import tasks
from esper.runtime.catalogue import TasksSettings, show_tasks
from esper.runtime.scene import Rules, build_scene
from esper.tolaria.data import Dataset, Part
from esper.utils.settings import SettingsError

FAST = ["--num-envs", "2", "--horizon", "2", "--backend", "eager"]


def bypassed() -> esper.Task:
    """The quick preset, with a bypass among its slots."""
    task = tasks.synthetic()
    settings = task.settings | {"slots": (0, "input:logits"), "steps_per_epoch": 1, "batch_size": 8}
    return task._replace(name="bypassed", blueprints=(CONV_LIGHT, CONV4X2, CONV8X2, PROBE), settings=settings)


@pytest.fixture(autouse=True)
def _preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "bypassed", bypassed)


def test_the_listing_tells_both_points_and_what_fits() -> None:
    show_tasks(TasksSettings(task="bypassed", json=True), out := io.StringIO())
    one, two = json.loads(out.getvalue())["tasks"][0]["slots"]
    # behind block 0 are 4 channels: 9 * 4 * 4 weights and 8 of the norm
    assert one == {"source": "block0", "target": "block0", "site": "conv", "shape": [4, 4, 4]} | {
        "blueprints": {"conv_light": 152}
    }
    assert (two["source"], two["target"], two["shape"]) == ("input", "logits", [1, 8, 8])
    assert two["blueprints"] == {"conv4x2": 438, "conv8x2": 1442, "probe": 650}
    show_tasks(TasksSettings(task="bypassed"), out := io.StringIO())
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert "slot 0  at block0, conv 4x4x4: conv_light 152" in lines
    assert "slot 1  from input to logits, conv 1x8x8: conv4x2 438, conv8x2 1,442, probe 650" in lines


def test_an_inspected_episode_says_where_slots_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "--task", "bypassed", "--policy", "random", *FAST[2:]]
    assert esper.__main__.main(words) == 0
    assert capsys.readouterr().out.splitlines()[1] == "slots: 0 block0, 1 input:logits"
    assert esper.__main__.main([*words, "--json", "true"]) == 0
    assert json.loads(capsys.readouterr().out)["slots"] == ["block0", "input:logits"]


def test_a_report_says_where_slots_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--task", "bypassed", *FAST, "--rounds", "1", "--eval-envs", "6", "--out", str(tmp_path / "run")]
    assert esper.__main__.main(words) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "Slot 0 is at block0. Slot 1 is a bypass from input to logits." in text
    assert "conv8x2" in text and "probe" in text
    capsys.readouterr()


def test_slots_and_blends_are_written_with_plus_signs() -> None:
    given = {"slots": "block1+input:logits", "blends": "linear+cosine"}
    config = build_scene(Rules(task="bypassed", engine=given), 2, "eager").engine.config
    assert config.slots == ("block1", "input:logits") and config.blends == (Blend.LINEAR, Blend.COSINE)
    assert build_scene(Rules(task="bypassed", engine={"slots": 2}), 2, "eager").engine.config.slots == (2,)
    for engine, words in (
        ({"slots": "0+input:out"}, "no point 'out'"),
        ({"slots": "0+"}, "no point ''"),
        ({"blends": "linear+rough"}, "'rough': expected some of linear, sigmoid, gated, cosine, with [+] between"),
    ):
        with pytest.raises(SettingsError, match=words):
            build_scene(Rules(task="bypassed", engine=engine), 2, "eager")


def test_names_of_slots_are_those_that_make_them_again() -> None:
    task = bypassed()
    written = (0, "block1:block1", "input:logits", "block2:logits")
    names = esper.make(task, 2, backend="eager", slots=written).structure.slot_names
    assert names == ("block0", "block1", "input:logits", "block2:logits")
    assert esper.make(task, 2, backend="eager", slots=names).structure.slot_names == names


def test_a_bypass_from_tokens_is_offered_without_a_gate() -> None:
    """A gate averages features; tokens are not."""
    task = tasks.synthetic_tokens()._replace(blueprints=(TRANSFORMER16,))
    with pytest.raises(ConfigError, match="no gate can weigh 'logits' by 'tokens'; expected blends without a gate"):
        esper.make(task, 2, slots=("input:logits",))
    engine = esper.make(task, 2, backend="eager", slots=("input:logits",), blends=(Blend.LINEAR,))
    assert engine.structure.slots[0].gate.size == 0


def test_a_gate_per_position_weighs_only_what_has_these_positions() -> None:
    """From a sequence to one vector per sample there is no weight to take: refused, whatever the lengths are."""
    blocks = (
        plain_block((), lambda p, x: x, token_site(3, 3), 0),
        plain_block((), lambda p, x: x.mean(2), vector_site(3), 0),
        plain_block((constant("w", (3, 3), 0.1),), lambda p, x: linear(x, p["w"]), None, 9),
    )
    host = Host("pooled", (3, 3), 3, blocks)
    seed = PROBE._replace(fits=lambda source, target: True)
    part = Part(torch.zeros(6, 3, 3), torch.arange(6) % 3)
    task = esper.Task("pooled", host, (seed,), Dataset("still", part, part, part, 3), {})
    for slot in ("block0:block1", "block0:logits"):
        with pytest.raises(ConfigError, match="no gate can weigh"):
            esper.make(task, 2, slots=(slot,))
    assert host.points["block0"].time_axis == 0 and host.points["logits"] == Site("logits", (3,), 0)
    assert esper.make(task, 2, backend="eager", slots=("block1:logits",)).structure.slots[0].gate.size
