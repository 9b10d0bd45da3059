"""Blueprints that exist as documents only: a run begins with them, they grow, and what is wrong is refused."""

import io
import json
import logging

import pytest
import torch
from runtime_documents import ROUNDS, Asking, document, record, settings
from runtime_forks import NAME, tiny

import esper
import esper.__main__
from esper.leyline.actions import NONE, Blend, Op
from esper.leyline.stages import Stage
from esper.nissa.sinks import read_rows
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.requests import ask, pending
from esper.runtime.train import train
from esper.tezzeret.blueprints import blueprint_of, parse
from esper.tezzeret.native import run as native_run
from esper.tezzeret.native.library import library
from esper.urza import series
from esper.utils.settings import SettingsError

pytestmark = pytest.mark.usefixtures("tiny_task")


def test_a_run_begins_with_documents_and_keeps_its_own_copy(tmp_path, capsys):
    file, folder = tmp_path / "mine.json", tmp_path / "run"
    file.write_bytes(document())
    out = io.StringIO()
    train(settings(folder, blueprints=str(file)), out)
    (entry,) = record(folder)
    id = entry["id"]
    assert entry == {
        "name": "mixed",
        "id": id,
        "source": str(file),
        "round": None,
        "reason": "",
        "backends": {NAME: "native" if library() else "eager"},
    }
    assert f"blueprint mixed {id[:12]}: {NAME} on {entry['backends'][NAME]}\n" in out.getvalue()
    assert json.loads((folder / "resolved.json").read_text())[NAME]["blueprints"][-1] == "mixed"
    assert load_run(folder).table["blueprints"] == [id]

    part = settings(tmp_path / "part", blueprints=str(file), rounds=2)
    train(part, io.StringIO())
    file.write_bytes(document(scale=0.1, bound=9))
    words = ["train", "--resume", part.out, "--rounds", str(ROUNDS), "--out", str(tmp_path / "other")]
    assert esper.__main__.main(words) == 0
    said = capsys.readouterr().out
    assert f"--blueprints {file}: changed since the run began ({id[:12]} then, " in said
    assert [row["return"] for row in read_rows(tmp_path / "other" / "metrics.jsonl")][:2] == [
        row["return"] for row in read_rows(folder / "metrics.jsonl")
    ][:2]
    assert record(tmp_path / "other") == [entry]
    file.unlink()
    words = ["evaluate", "--run", str(folder), "--num-envs", "6", "--grow", "mixed", "--policies", "wait", "--json"]
    assert esper.__main__.main(words) == 0
    assert "grow mixed" in json.loads(capsys.readouterr().out)["policies"]
    checkpoint = series.member(folder / "checkpoints", series.moments(folder / "checkpoints")[-1])
    assert esper.__main__.main(["inspect", "--run", str(checkpoint)]) == 0


def test_what_is_refused_is_said_and_the_run_goes_on(tmp_path, caplog, capsys):
    folder = tmp_path / "run"
    asked = [document("norm"), document("far", scale=0.5), document("good"), document("more")]
    with caplog.at_level(logging.WARNING, logger="esper"):
        train(settings(folder, spare_blueprints=1), Asking("  1/", folder, asked))
    reasons = {entry["name"]: entry["reason"] for entry in record(folder)}
    assert reasons["norm"].startswith("blueprint 'norm': known already; expected another name than ")
    assert reasons["far"].startswith("blueprint 'far' in slot 0: ") and "y - x" in reasons["far"]
    assert reasons["good"] == ""
    assert reasons["more"] == "no place is free; --spare-blueprints was 1"
    assert len(read_rows(folder / "metrics.jsonl")) == ROUNDS and pending(folder) == []
    refused = [line.getMessage() for line in caplog.records]
    assert len(refused) == 3 and all(": refused: " in line for line in refused)
    with pytest.raises(SettingsError, match=r"has blueprint 'good' already, since round 1$"):
        ask(folder, document("good"), "mine.json")
    with pytest.raises(esper.ConfigError, match=r"^mine.json: parse: "):
        ask(folder, b'{"format": 1}', "mine.json")
    with pytest.raises(SettingsError, match="holds no run"):
        ask(tmp_path, document(), "mine.json")
    (folder / "blueprints" / f"{record(folder)[2]['id']}.json").write_bytes(document("bad"))
    assert esper.__main__.main(["evaluate", "--run", str(folder)]) == 2
    assert "expected " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "parse"),
        (document("far", scale=0.5), "y - x"),
        (document("norm"), "expected distinct names"),
        (document().replace(b'"conv"', b'"vector"'), "'mixed' fits no slot of tiny; expected one that does"),
    ],
)
def test_a_run_does_not_begin_with_what_is_wrong(tmp_path, capsys, data, said):
    (tmp_path / "mine.json").write_bytes(data)
    words = ["train", "--task", NAME, "--blueprints", str(tmp_path / "mine.json"), "--out", str(tmp_path / "run")]
    assert esper.__main__.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.skipif(library() is None, reason="no C++ compiler")
@pytest.mark.usefixtures("kernels_may_fail")
def test_kernels_that_raise_are_counted_in_the_metrics(tmp_path, monkeypatch):
    plain, calls = native_run.library, []

    class Broken:
        def __getattr__(self, name):
            if name == "esper_train":
                calls.append(name)
                if len(calls) == 6:
                    raise RuntimeError("a kernel of ours")
            return getattr(plain(), name)

    monkeypatch.setattr(native_run, "library", Broken)
    train(settings(tmp_path / "run"), io.StringIO())
    counts = [row["kernel_failures"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert counts == [0, 1, 0, 0], "four calls a round, and none after the sixth"
    assert len(calls) == 6


@pytest.mark.skipif(library() is None, reason="no C++ compiler")
def test_what_exists_as_a_document_grows_to_its_end_on_native():
    """A seed germinates, trains away from its start, is blended in, and is made permanent; all else is the task's."""
    kind = blueprint_of(parse(document(), "mine.json"))
    engine = esper.make(tiny()._replace(blueprints=(kind,)), 3, backend="native", blends=(Blend.LINEAR,), horizon=12)
    state, codec = engine.init(0), engine.codec
    wanted = [op for op in (Op.GERMINATE, Op.ADVANCE, Op.FOSSILIZE) if op in set(codec.op.tolist())]
    seen, start = [], state.host.params
    for _ in range(12):
        mask = engine.mask(state)
        legal = [(mask & (codec.op == int(op))).int().argmax(1) for op in wanted]
        action = torch.stack(legal).amax(0)
        state, event = engine.step(state, action)
        assert not event.result.refusal.any() and not event.judgement.rolled_back.any()
        seen.append(state.slots.stage[:, 0].tolist())
    row = {number: [column[number] for column in seen] for number in range(3)}
    for stages in row.values():
        assert sorted(set(stages)) == stages[:1] + [s for s in sorted(set(stages)) if s != stages[0]]
        assert {int(Stage.TRAINING), int(Stage.BLENDING), int(Stage.FOSSILIZED)} <= set(stages)
    assert bool((state.slots.blueprint == 0).all()) and NONE not in state.slots.blend
    size = engine.structure.slots[0].row(0).size
    assert bool((state.seeds.params[:, :size] != 0).all()) and not torch.equal(state.host.params, start)
    grown = engine.network_of(state, 0)
    x = engine.data.test.inputs
    with torch.no_grad():
        accuracy = 100 * float((grown.eval()(x).argmax(1) == engine.data.test.targets).float().mean())
    assert accuracy == pytest.approx(float(engine.test(state).accuracy[0]), abs=1e-4)
