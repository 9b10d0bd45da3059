"""Blueprints that exist as documents only: a run begins with them, takes more while it trains, and goes on."""

import io
import json
import logging
import shutil
import signal
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runtime_forks import NAME, one_life, result, tiny, words

import esper
import esper.__main__
from esper.kasmina.bypass_blueprints import CONV4X2
from esper.leyline.actions import NONE, Blend, Op
from esper.leyline.stages import Stage
from esper.nissa.sinks import read_rows
from esper.runtime import tasks
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.requests import ask, pending
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings
from esper.tezzeret.blueprints import blueprint_of, parse
from esper.tezzeret.native import run as native_run
from esper.tezzeret.native.library import library
from esper.tezzeret.stages import CompileJob, compile_document
from esper.urza import series
from esper.urza.store import open_store
from esper.utils.settings import SettingsError

pytestmark = pytest.mark.usefixtures("tiny_task")
ROUNDS = 4


def document(name="mixed", channels="channels", scale=0.0, bound=0):
    """x + w x + b at every position of a map."""
    rows = [
        {"name": "w", "shape": [channels, channels, 1, 1], "init": "constant", "scale": scale},
        {"name": "b", "shape": [channels], "init": "constant", "scale": 0},
    ]
    nodes = [
        {"name": "mix", "op": "convolve", "inputs": ["x", "w", "b"]},
        {"name": "sum", "op": "add", "inputs": ["x", "mix"]},
    ]
    case = {"source": ["conv"], "parameters": rows, "train": {"nodes": nodes, "output": "sum"}}
    table = {"format": 1, "name": name, "description": "", "bypass": False, "identity_bound": bound, "cases": [case]}
    return json.dumps(table).encode()


def settings(folder, **more):
    sizes = {"num_envs": 2, "features": 4, "lstm": 4, "head": 4, "minibatches": 2, "epochs": 1, "keep": 99}
    rest = {"horizon": 4, "rounds": ROUNDS, "eval_envs": 0, "save_every": 1e-6, "progress": "lines"}
    return TrainSettings(task=NAME, out=str(folder), **(sizes | rest | more))


class Asking(io.StringIO):
    """Output that hands documents to the run when it says a line."""

    def __init__(self, when, folder, documents):
        super().__init__()
        self.when, self.folder, self.documents = when, Path(folder), documents

    def write(self, text):
        if self.when in text:
            for data in self.documents:
                ask(self.folder, data, "mine.json")
        return super().write(text)


def chained(folder):
    return [(row["environments_hash"], row["learner_hash"]) for row in read_rows(Path(folder) / "metrics.jsonl")]


def record(folder):
    return json.loads((Path(folder) / "blueprints.json").read_text())["blueprints"]


def expect_same_end(folder, other):
    assert chained(folder) == chained(other)
    found, wanted = load_run(Path(folder)), load_run(Path(other))
    assert found.table["blueprints"] == wanted.table["blueprints"]
    assert found.table["interface"] == wanted.table["interface"]
    for name, tensor in wanted.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_task):
    """A run that was handed a document after its second round, and what it said."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    out = Asking("  2/", folder, [document()])
    train(settings(folder, spare_blueprints=2), out)
    return folder, out.getvalue()


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


def test_a_running_training_takes_a_document_between_rounds(asked, tmp_path):
    """Before it, all is as without it; the policy's numbers stay, and what was free has a name."""
    folder, said = asked
    (entry,) = record(folder)
    assert (entry["name"], entry["source"], entry["round"], entry["reason"]) == ("mixed", "request", 2, "")
    assert f"blueprint mixed {entry['id'][:12]}: taken after round 2: {NAME} on " in said and pending(folder) == []
    train(settings(tmp_path / "without", spare_blueprints=2), io.StringIO())
    rows, plain = chained(folder), chained(tmp_path / "without")
    assert rows[:2] == plain[:2] and rows[2] != plain[2]
    table, before = load_run(folder).table, load_run(tmp_path / "without").table
    assert before["interface"]["blueprints"][-2:] == ["free 1", "free 2"] and before["blueprints"] == []
    assert table["interface"]["blueprints"][-2:] == ["mixed", "free 2"] and table["blueprints"] == [entry["id"]]
    assert table["interface"]["actions"] == before["interface"]["actions"]
    assert [one for one in table["interface"]["columns"] if "=mixed" in one] == ["slot0.blueprint=mixed"]
    assert len(table["interface"]["columns"]) == len(before["interface"]["columns"])
    assert load_run(folder).tensors.keys() == load_run(tmp_path / "without").tensors.keys()


def test_it_goes_on_to_the_same_bits_from_before_and_from_after(asked, tmp_path):
    """From a checkpoint of before, what was taken then is taken at its round again."""
    folder, _ = asked
    moments = series.moments(folder / "checkpoints")
    early = max(moment for moment in moments if moment.rounds == 1)
    late = min(moment for moment in moments if moment.rounds == 2 and moment.steps > 0)
    for name, moment in (("early", early), ("late", late)):
        place = series.member(folder / "checkpoints", moment)
        go_on = settings(tmp_path / name, spare_blueprints=2, resume=str(place))
        train(go_on, io.StringIO())
        expect_same_end(tmp_path / name, folder)
        assert record(tmp_path / name) == record(folder)


def test_a_graph_policy_needs_no_free_place(tmp_path):
    out = Asking("  1/", tmp_path / "run", [document()])
    whole = settings(tmp_path / "run", policy_network="graph", rounds=3)
    train(whole, out)
    assert record(tmp_path / "run")[0]["round"] == 1
    place = series.member(tmp_path / "run" / "checkpoints", series.moments(tmp_path / "run" / "checkpoints")[1])
    train(settings(tmp_path / "other", policy_network="graph", rounds=3, resume=str(place)), io.StringIO())
    expect_same_end(tmp_path / "other", tmp_path / "run")


def test_of_several_tasks_those_take_it_that_have_a_slot_for_it(tmp_path, monkeypatch):
    """The other one goes on as it is, and all of it goes on from the middle."""
    beside = {"slots": ("input:logits",), "blends": (Blend.LINEAR,)}
    other = tiny()._replace(name="beside", blueprints=(CONV4X2,), settings=tiny().settings | beside)
    monkeypatch.setitem(tasks.TASKS, "beside", lambda: other)
    both = settings(tmp_path / "run", spare_blueprints=1, rounds=3)
    both = replace(both, task=f"{NAME},beside")
    out = Asking("  1/", tmp_path / "run", [document()])
    train(both, out)
    (entry,) = record(tmp_path / "run")
    assert (entry["round"], list(entry["backends"])) == (1, [NAME])
    moments = series.moments(tmp_path / "run" / "checkpoints")
    middle = min(moment for moment in moments if moment.rounds == 1 and moment.steps > 4)
    place = series.member(tmp_path / "run" / "checkpoints", middle)
    train(replace(both, out=str(tmp_path / "other"), resume=str(place)), io.StringIO())
    expect_same_end(tmp_path / "other", tmp_path / "run")
    both = replace(both, out=str(tmp_path / "third"), blueprints=str(tmp_path / "mine.json"), rounds=1)
    (tmp_path / "mine.json").write_bytes(document())
    train(both, io.StringIO())
    names = json.loads((tmp_path / "third" / "resolved.json").read_text())
    assert names[NAME]["blueprints"][-1] == "mixed" and names["beside"]["blueprints"] == ["conv4x2"]


class WhileTaking:
    """Ends the process at the n-th operation on files while a request is decided on."""

    def __init__(self, number):
        self.left = number

    def met(self, point, arrival):
        del arrival
        if not any(frame.name == "_decide" for frame in traceback.extract_stack()):
            return None
        self.left -= 1
        return "kill" if self.left == 0 else None


@pytest.mark.parametrize("deaths", [(1, 6, 10), pytest.param(range(1, 13), marks=pytest.mark.large)])
def test_a_death_while_a_document_is_taken_changes_nothing(tmp_path, deaths):
    """Of the ten operations with which it is recorded; the eleventh is none, and such a run lives."""
    begun, flags = tmp_path / "begun", ["--spare-blueprints", "1"]
    assert esper.__main__.main([*words(begun, 1), *flags]) == 0
    ask(begun, document(), "mine.json")
    shutil.copytree(begun, tmp_path / "whole")
    assert esper.__main__.main([*words(tmp_path / "whole", 3), *flags]) == 0
    for number in deaths:
        folder = tmp_path / f"death{number}"
        shutil.copytree(begun, folder)
        status = one_life([*words(folder, 3), *flags], tmp_path / "log", WhileTaking(number))
        assert status == (-signal.SIGKILL if number <= 10 else 0)
        assert esper.__main__.main([*words(folder, 3), *flags]) == 0
        assert result(folder) == result(tmp_path / "whole") and record(folder) == record(tmp_path / "whole")
        assert len(list((folder / "blueprints").iterdir())) == 1 and pending(folder) == []
    assert record(tmp_path / "whole")[0]["round"] == 1


class Working(io.StringIO):
    """Output beside which somebody asks, and later a worker works: between rounds, as their lines are said."""

    def __init__(self, folder, documents):
        super().__init__()
        self.folder, self.documents, self.ids = folder, documents, []

    def write(self, text):
        if "  1/" in text:
            self.ids = [ask(self.folder, data, "mine.json") for data in self.documents]
        if "  2/" in text:
            assert json.loads((self.folder / "blueprints.json").read_text()) == {"blueprints": [], "pending": self.ids}
            assert [request.id for request in pending(self.folder)] == self.ids
            with open_store() as store:
                while (taken := store.queue.claim("a worker")) is not None:
                    job = CompileJob(taken.document, "mine.json", **taken.facts)
                    assert job.site == "conv:2x2x2" and job.backend == "native"
                    id, reports = compile_document(job, store, None)
                    store.queue.complete(taken, id) if id else store.queue.fail(taken, reports[-1].line)
        return super().write(text)


@pytest.mark.skipif(library() is None, reason="no C++ compiler")
def test_what_a_worker_compiles_first_is_pending_until_it_has_arrived(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPER_STORE_FOLDER", str(tmp_path / "store"))
    folder, asked = tmp_path / "run", [document(), document("far", scale=0.5)]
    out = Working(folder, asked)
    train(settings(folder, spare_blueprints=2, compile_requests=True), out)
    good, bad = record(folder)
    assert (good["name"], good["round"], good["reason"]) == ("mixed", 2, "")
    assert (bad["name"], bad["round"]) == ("far", 2) and bad["reason"].startswith("failed: ")
    with open_store() as store:
        assert store.queue.counters() | {"deployed": 1, "failed": 1} == store.queue.counters()
        (package,) = store.list(kind="blueprint")
    source = tmp_path / "stored"
    train(settings(source, blueprints=f"store:{package.id}", rounds=1), io.StringIO())
    assert record(source)[0]["id"] == good["id"] and record(source)[0]["source"] == f"store:{package.id}"
    with pytest.raises(SettingsError, match=r"^--blueprints store:0+: unknown: 0+: not in this store$"):
        train(settings(tmp_path / "none", blueprints=f"store:{'0' * 64}"), io.StringIO())


def test_the_commands_hand_over_and_tell(tmp_path, capsys):
    folder, file = tmp_path / "run", tmp_path / "mine.json"
    train(settings(folder, spare_blueprints=1, rounds=1), io.StringIO())
    file.write_bytes(document())
    capsys.readouterr()
    assert esper.__main__.main(["blueprint", "add", str(folder), str(file)]) == 0
    said = capsys.readouterr().out
    (request,) = pending(folder)
    assert said.startswith(f"blueprint mixed {request.id}: asked for; ")
    assert esper.__main__.main(["blueprint", "requests", str(folder)]) == 0
    assert capsys.readouterr().out == f"{request.id[:12]}  pending\n"
    assert esper.__main__.main(["train", "--resume", str(folder), "--rounds", "2", "--progress", "off"]) == 0
    capsys.readouterr()
    assert esper.__main__.main(["blueprint", "requests", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{request.id[:12]}  mixed  after round 1: {NAME} on ")
    assert esper.__main__.main(["blueprint", "requests", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"blueprints": record(folder), "pending": []}
    assert esper.__main__.main(["blueprint", "add", str(tmp_path), str(file)]) == 2
    assert capsys.readouterr().err.endswith("holds no run; expected a run directory\n")


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
