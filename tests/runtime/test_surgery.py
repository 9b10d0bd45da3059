"""``esper surgery``: places, operations, and networks that are hosts again, from an episode and from a file."""

import json

import pytest
import torch

import esper
from esper.__main__ import main
from esper.runtime.carriers import read_network
from esper.runtime.surgery_report import tell_list
from esper.runtime.tasks import named

SMALL = ["--horizon", "9", "--seed", "3", "--env", "1", "--engine", "steps_per_epoch=4,blend_epochs=1"]
SMALL += ["--engine", "min_training_epochs=1,min_blending_epochs=1,min_improvement=-100,min_contribution=-100"]
SMALL += ["--policy", "py:surgery_policy:growing"]

POLICY = """
from esper.tamiyo.policies import from_mask
from esper.tamiyo.scripted import grow

def growing(engine):
    return from_mask("grow", grow(engine.codec, "conv8x2"))
"""
OPS = "modify_layer(conv, width=8); insert_layer(deeper, conv); remove_layer(tail)"


def card_of(capsys, *words):
    assert main(["surgery", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The network of an episode, exported, and operated on before it was."""
    folder = tmp_path_factory.mktemp("operated")
    (folder / "surgery_policy.py").write_text(POLICY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        assert main(["export", "--to", str(folder / "plain.safetensors"), *SMALL]) == 0
        ops = OPS.rpartition(";")[0]
        assert main(["surgery", "--ops", ops, "--to", str(folder / "first.safetensors"), *SMALL]) == 0
        yield folder


def outputs(path):
    with torch.no_grad():
        return read_network(path).eval()(named("digits").data.test.inputs)


def test_operations_that_keep_outputs_keep_those_of_the_file(folder):
    card = json.loads((folder / "first.json").read_text(encoding="utf-8"))
    torch.testing.assert_close(outputs(folder / "first.safetensors"), outputs(folder / "plain.safetensors"))
    first, second = card["operations"]
    assert [row["parameters"] for row in (first, second)] == [[94, 178], [178, 178 + 8 * 8 * 9 + 2 * 8]]
    assert first["kept"] and second["kept"] and first["validation"][0] == pytest.approx(first["validation"][1])
    assert card["history"]["all"]["done"] == 2 and card["layers"] == {"conv": 4, "weight": 10}
    assert card["test_accuracy"] == pytest.approx(card["test_accuracy_of_file"], abs=1e-4)


def test_a_file_is_a_host_again_seeds_and_all(folder, capsys):
    """Without its task named: the card knows it. Every operation's network can be operated on again."""
    path, before = folder / "first.safetensors", outputs(folder / "first.safetensors")
    for op in ("modify_layer(slot2.conv8x2.conv0, width=12, start=zero)", "insert_layer(more, block0.block0.deeper)"):
        to = folder / f"again{len(op)}.safetensors"
        card = card_of(capsys, "--network", path, "--ops", op, "--to", to)
        assert card["task"] == "digits" and card["network"] == str(path) and card["operations"][0]["kept"]
        torch.testing.assert_close(outputs(to), before, rtol=1e-4, atol=1e-4)
        path = to
    narrower = card_of(capsys, "--network", path, "--ops", "modify_layer(slot2.conv8x2.conv0, width=8)")
    assert narrower["operations"][0]["moved"] is not None or narrower["operations"][0]["reason"]


def test_a_grown_network_trains_on_every_backend_that_takes_it(folder):
    """Batch norms of what was exported are seen as such: the native library takes it, and steps as eager does."""
    task, states = named("digits"), []
    host = esper.host(read_network(folder / "first.safetensors"), task.data.train.inputs[:4])
    for backend in ("auto", "eager"):
        engine = esper.make(task._replace(host=host), 2, backend=backend, slots=(), steps_per_epoch=4)
        state, _ = engine.step(engine.init(0), torch.zeros(2, dtype=torch.int64))
        states.append(state)
    for name in ("params", "moments"):
        one, other = (getattr(state.host, name) for state in states)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states[0].buffers, states[1].buffers, rtol=1e-4, atol=1e-4)


def test_without_operations_it_lists_what_can_be_done(folder, capsys):
    card = card_of(capsys, *SMALL)
    rows = {row["op"]: row for row in card["places"]}
    assert rows["modify_layer(conv, width=8)"]["kept"] and not rows["modify_layer(conv, width=2)"]["kept"]
    assert rows["modify_layer(weight, width=20)"]["reason"].endswith("is that of the network's output")
    assert rows["rewire(weight, input)"]["stage"] == "operation"
    assert "features would pass by block0" in rows["add_skip(conv, weight, start=zero)"]["reason"]  # there is a slot
    first, *lines = tell_list(card).splitlines()
    assert "conv 4, weight 10" in first and "refused:" in lines and any("outputs kept" in line for line in lines)
    assert all(line.startswith("  ") or line == "refused:" for line in lines)


def test_what_is_refused_is_said_and_no_file_is_written(folder, capsys):
    asked = ["surgery", "--network", str(folder / "first.safetensors"), "--ops", "modify_layer(block0.conv, width=17)"]
    assert main(asked) == 0
    assert "refused (rules): width_factor = 2, 8 to 17 asked for" in capsys.readouterr().out
    assert main([*asked, "--to", str(folder / "none.safetensors")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "width_factor = 2" in line and "nothing is written" in line
    assert not list(folder.glob("none*"))
    assert main([*asked, "--limits", "width_factor=3"]) == 0
    assert "outputs kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ops", "widen(conv)"], "operation 'widen(conv)': expected one of insert_layer"),
        (["--limits", "depth=deep"], "--limits: depth = 'deep': expected a whole number from 0"),
        (["--limits", "topology=1"], "--limits: topology = 1: expected true or false"),
        (["--limits", "deep=1"], "--limits: deep: expected one of widths, topology"),
        (["--to", "x.safetensors"], "nothing is to be done; expected --ops"),
        (["--network", "none.safetensors"], "--network none.safetensors: FileNotFoundError"),
        (["--network", "none.pt2"], "--network none.pt2: expected a *.safetensors"),
        (["--network", "none.safetensors", "--run", "runs"], "--network and --run: expected one of them"),
    ],
)
def test_what_cannot_be_read_is_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["surgery", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("esper surgery: ") and said in line and not list(tmp_path.iterdir())


def test_a_strangers_settings_run_no_network_and_a_strangers_card_imports_no_task(folder, capsys, tmp_path):
    (tmp_path / "given.toml").write_text('network = "x.safetensors"\n', encoding="utf-8")
    assert main(["surgery", "--config", str(tmp_path / "given.toml")]) == 2
    assert "whose source is run; expected it as a flag" in capsys.readouterr().err
