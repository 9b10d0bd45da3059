"""Watching changes no bit of a run, whatever becomes of the page and of its files; what it writes is what happened."""

import errno
import io
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from esper.runtime import watch as watch_module
from esper.runtime import watching as module
from esper.runtime.run_health import run_health
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings

ROUNDS = 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    small = {"features": 8, "lstm": 8, "minibatches": 2, "epochs": 1, "horizon": 6, "engine": {"steps_per_epoch": 1}}
    return TrainSettings(
        task="synthetic", num_envs=3, rounds=ROUNDS, eval_envs=0, out=str(out), watch_envs=0, progress="lines", **small
    )


@pytest.fixture(scope="module")
def plain(settings):
    train(settings, io.StringIO())
    return settings.out


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def chain(folder):
    return [(row["return"], row["environments_hash"], row["learner_hash"]) for row in rows(folder)]


def test_a_watched_run_has_the_same_bits_and_tells_what_happened(settings, plain, tmp_path):
    folder = tmp_path / "watched"
    out = io.StringIO()
    train(replace(settings, out=str(folder), watch=True, watch_port=0, watch_envs=2), out)
    assert chain(folder) == chain(plain) and "http://127.0.0.1:" in out.getvalue()
    assert not any(name.startswith("germinated/") for row in rows(plain) for name in row)
    lanes = [json.loads(line) for line in (folder / "watch.jsonl").read_text().splitlines()]
    assert [(lane["round"], lane["played"], len(lane["envs"])) for lane in lanes] == [
        (n, 6, 2) for n in range(1, ROUNDS + 1)
    ]
    reports = [json.loads(line) for line in (folder / "seeds.jsonl").read_text().splitlines()]
    assert reports and {report["env"] for report in reports} <= {0, 1}
    for lane in lanes:
        for env, drawn in enumerate(lane["envs"]):
            mine = [each for each in reports if each["round"] == lane["round"] and each["env"] == env]
            for slot, stretches in enumerate(drawn["slots"]):
                for each in (each for each in mine if each["slot"] == slot):
                    spent = {
                        stage: sum(stop - start + 1 for name, start, stop, kind in stretches if name == stage)
                        for stage in each["epochs"]
                    }
                    assert all(spent[stage] >= count for stage, count in each["epochs"].items())
    placed = sum(row["share_germinate"] + row["share_change_blueprint"] for row in rows(folder)) * 3 * 6
    assert sum(line.germinated for line in run_health(folder, rows(folder)).blueprints) == round(placed)
    assert json.loads((folder / "blueprint_table.json").read_text())[0]["params"] > 0


def test_killing_the_page_changes_no_bit(settings, plain, tmp_path, monkeypatch):
    pages = []
    made = watch_module.LivePage

    def kept(*arguments):
        pages.append(made(*arguments))
        return pages[-1]

    class Killing(io.StringIO):
        def write(self, text):
            if "2/3" in text:
                for page in pages:
                    page.server.socket.close()
                    page.server.shutdown()
            return super().write(text)

    monkeypatch.setattr(watch_module, "LivePage", kept)
    folder, out = tmp_path / "killed", Killing()
    train(replace(settings, out=str(folder), watch=True, watch_port=0, watch_envs=3), out)
    assert pages and "2/3" in out.getvalue() and chain(folder) == chain(plain)


def test_a_full_disk_for_its_files_and_a_port_that_is_taken_cost_a_warning_each(
    settings, plain, tmp_path, monkeypatch, caplog
):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_text", full)
    monkeypatch.setattr(module, "append_line", full)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        watched = {"watch": True, "watch_port": port, "watch_envs": 2}
        train(replace(settings, out=str(tmp_path / "run"), **watched), io.StringIO())
    assert chain(tmp_path / "run") == chain(plain)
    assert len([record for record in caplog.records if f"port {port}" in record.message]) == 1
    told = [record.message for record in caplog.records if "disk full" in record.message]
    assert len(told) == 2 and "watch.jsonl" in told[0] and "seeds.jsonl" in told[1]


def test_a_run_that_goes_on_drops_what_its_files_hold_beyond(settings, tmp_path):
    folder = tmp_path / "run"
    train(replace(settings, out=str(folder), rounds=2, watch_envs=1), io.StringIO())
    with (folder / "seeds.jsonl").open("a") as file:
        file.write('{"round": 3, "reason": "of a round that was never finished"}\nno json\n')
    train(replace(settings, out=str(folder), resume=str(folder), rounds=ROUNDS, watch_envs=1), io.StringIO())
    lines = [json.loads(line) for line in (folder / "seeds.jsonl").read_text().splitlines()]
    assert {line["round"] for line in lines} <= {1, 2, 3} and all(
        "never finished" not in line["reason"] for line in lines
    )
    assert [json.loads(line)["round"] for line in (folder / "watch.jsonl").read_text().splitlines()] == [1, 2, 3]
