"""``esper export``: files that hold the network, read by torch alone, with the run's accuracy to the sample."""

import importlib.util
import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from esper.__main__ import main
from esper.runtime import written
from esper.runtime.tasks import named

SMALL = ["--horizon", "9", "--seed", "3", "--env", "1", "--engine", "steps_per_epoch=4,blend_epochs=1"]
SMALL += ["--engine", "min_training_epochs=1,min_blending_epochs=1,min_improvement=-100,min_contribution=-100"]


POLICY = """
from esper.tamiyo.policies import from_mask
from esper.tamiyo.scripted import grow

def growing(engine):
    return from_mask("grow", grow(engine.codec, "conv8x2"))
"""
GROWING = ["--policy", "py:export_policy:growing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported network of the digits, as weights with source, and as a program."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "export_policy.py").write_text(POLICY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for ending in (".safetensors", ".pt2"):
            assert main(["export", "--to", str(folder / f"net{ending}"), *GROWING, *SMALL]) == 0
        yield folder


LOAD = {
    ".safetensors": """
        from safetensors.torch import load_file as load
        from net import Network
        network = Network()
        network.load_state_dict(load("net.safetensors"))
        network.eval()
    """,
    ".pt2": """
        import torch
        network = torch.export.load("net.pt2").module()
    """,
}
COUNT = """
        from safetensors.torch import load_file
        data = load_file("data.safetensors")
        print(int((network(data["x"]).argmax(1) == data["y"]).sum()))
"""
ALONE = """
        import sys
        sys.path = ["."] + [place for place in sys.path if "site-packages" in place or "python3" in place]
        sys.modules["esper"] = None
"""


@pytest.mark.parametrize("ending", LOAD)
def test_it_runs_where_there_is_no_esper_with_the_same_accuracy(folder, ending):
    test = named("digits").data.test
    save_file({"x": test.inputs.contiguous(), "y": test.targets}, folder / "data.safetensors")
    script = "".join(textwrap.dedent(part) for part in (ALONE, LOAD[ending], COUNT))
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=True)
    card = json.loads((folder / "net.json").read_text(encoding="utf-8"))
    assert int(done.stdout) == round(card["test_accuracy"] / 100 * test.size)


def test_the_card_says_what_grew_when_and_what_it_contributes(folder):
    card = json.loads((folder / "net.json").read_text(encoding="utf-8"))
    with safe_open(folder / "net.safetensors", "pt") as file:
        weights = json.loads(file.metadata()["card"])
        trained = [name for name in file.keys() if "mean" not in name and "variance" not in name]  # noqa: SIM118
        counted = sum(file.get_tensor(name).numel() for name in trained if not name.endswith("alpha"))
    assert card["parameters"] == weights["parameters"] == counted
    within = [seed for seed in card["seeds"] if seed["in_network"]]
    assert card["parameters"] == card["host"]["parameters"] + sum(seed["parameters"] for seed in within)
    assert within and all(0 <= seed["germinated"] < 9 for seed in within)
    assert any(seed["contribution"] is not None for seed in within)
    for place in ("exported", "of_file"):
        assert card[f"test_accuracy_{place}"] == pytest.approx(card["test_accuracy"], abs=1e-4)  # less than a sample
    assert (
        set(card["inference_ms"]) == {"whole", "folded", "folded_norms"} and card["inference_ms"]["folded_norms"] >= 1
    )
    assert card["versions"]["torch"] == torch.__version__.partition("+")[0] or card["versions"]["torch"]


@pytest.mark.parametrize("to", ["", "net", "net.pt", ".pt2", "nowhere/net.pt2"])
def test_a_place_that_cannot_be_written_is_one_line(to, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--to", to]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("esper export: --to") and not list(tmp_path.iterdir())


def test_what_onnx_needs_is_named_where_it_is_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(written.importlib.util, "find_spec", lambda name: None)
    assert main(["export", "--to", str(tmp_path / "net.onnx")]) == 2
    assert "needs onnx, onnxscript, onnxruntime; expected the extra: pip install esper-growth[onnx]" in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # of torch.onnx itself
def test_onnx_gives_the_same_outputs_at_every_size_of_batch(folder, capsys):
    """The command itself compares at 1, 2, 7 and 64 samples."""
    assert main(["export", "--to", str(folder / "net.onnx"), "--json", "true", *GROWING, *SMALL]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["largest_difference"] <= 1e-5
    assert card["test_accuracy_of_file"] == pytest.approx(card["test_accuracy"], abs=1e-4)
