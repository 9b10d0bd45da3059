"""A training that is running takes documents between its rounds, and goes on with them to the same bits."""

import io
import json
import shutil
import signal
import traceback
from dataclasses import replace

import pytest
from runtime_documents import Asking, chained, document, expect_same_end, record, settings
from runtime_forks import NAME, one_life, result, tiny, words

import esper
import esper.__main__
from esper.kasmina.bypass_blueprints import CONV4X2
from esper.leyline.actions import Blend
from esper.runtime import tasks
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.requests import ask, pending
from esper.runtime.train import train
from esper.tezzeret.native.library import library
from esper.tezzeret.stages import CompileJob, compile_document
from esper.urza import series
from esper.urza.store import open_store
from esper.utils.settings import SettingsError

pytestmark = pytest.mark.usefixtures("tiny_task")


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_task):
    """A run that was handed a document after its second round, and what it said."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    out = Asking("  2/", folder, [document()])
    train(settings(folder, spare_blueprints=2), out)
    return folder, out.getvalue()


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


def test_what_no_run_could_have_been_handed_ends_nothing(tmp_path, monkeypatch, caplog):
    """Files of other names are left alone; links, other documents than the name says and what cannot be removed are
    refused once.
    """
    folder, requests = tmp_path / "run", tmp_path / "run" / "requests"

    class Littering(io.StringIO):
        def write(self, text):
            if "  1/" in text:
                requests.mkdir()
                (requests / "notes.json").write_text("mine")
                (requests / f"{'a' * 64}.json").write_bytes(document())
                (requests / f"{'b' * 64}.json").symlink_to("/etc/hostname")
                (requests / f"{'c' * 64}.json").mkdir()
            return super().write(text)

    train(settings(folder, spare_blueprints=1), Littering())
    reasons = {entry["id"][0]: (entry["round"], entry["reason"]) for entry in record(folder)}
    assert len(record(folder)) == 3 and {round for round, _ in reasons.values()} == {1}
    assert reasons["a"][1].endswith("another document than its name says; expected its id")
    assert "symbolic links" in reasons["b"][1] and reasons["c"][1].endswith("is no ordinary file")
    assert sorted(path.name[0] for path in requests.iterdir()) == ["c", "n"]
    assert sum("not removed" in line.getMessage() for line in caplog.records) == 1
