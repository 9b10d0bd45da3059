"""Tasks by name, from disk, and the commands that list and run them."""

import io
import json
from pathlib import Path

import pytest

import esper
import esper.__main__
from esper.runtime.catalogue import TasksSettings, show_tasks
from esper.runtime.scene import Rules, build_scene
from esper.runtime.tasks import TASKS, named


def cifar_folder(folder: Path) -> Path:
    """Six files of four records, byte by byte: a label, then 3 x 32 x 32 pixels."""
    for batch, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        records = (
            bytes([(batch + 3 * r) % 10]) + bytes((7 * batch + r + i) % 256 for i in range(3072)) for r in range(4)
        )
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    return folder


def test_a_cifar_folder_trains_and_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = f"cifar10:{cifar_folder(tmp_path)}"
    small = ["--num-envs", "2", "--engine", "steps_per_epoch=1,batch_size=4"]
    words = [
        "train",
        "--task",
        task,
        "--rounds",
        "1",
        "--horizon",
        "2",
        "--eval-envs",
        "6",
        "--out",
        str(tmp_path / "run"),
    ]
    assert esper.__main__.main([*words, *small]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    capsys.readouterr()
    again = ["evaluate", "--run", str(tmp_path / "run"), "--num-envs", "6", "--json", "true"]
    assert esper.__main__.main(again) == 0
    report = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["task"] == task
    assert report["policies"]["learned"] == written["policies"]["learned"] | {
        "seconds": report["policies"]["learned"]["seconds"]
    }
    assert report["data"]["samples"] == {"train": 18, "validation": 2, "test": 4}


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("cifar10:/nowhere", "/nowhere"),
        ("text:/nowhere/book.txt", "book.txt"),
        ("cifar10:", "cifar10:PATH"),
        ("x:y", "x:y"),
    ],
)
def test_what_does_not_load_is_one_line(task: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert esper.__main__.main(["train", "--task", task, "--out", "unused"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
    assert not Path("unused").exists()


def test_text_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    task = named(f"text:{path}")
    assert task.name == f"text:{path}"
    assert task.data.num_classes == task.host.num_outputs == len(set(path.read_text()))


def test_the_listing_says_what_the_host_and_its_slots_are() -> None:
    out = io.StringIO()
    show_tasks(TasksSettings(json=True), out)
    listing = {fact["name"]: fact for fact in json.loads(out.getvalue())["tasks"]}
    assert list(listing) == list(TASKS)
    digits = listing["digits_v1"]
    # cnn 4: 36 weights, 8 of the norm, 40 weights and 10 biases of the head; conv_light: 144 weights, 8 of the norm
    assert digits["parameters"] == 94
    assert digits["data"]["samples"] == {"train": 1437, "validation": 180, "test": 180}
    assert digits["slots"][2]["blueprints"]["conv_light"] == 152
    # attention at width 32: query, key, value and output matrices, each 32 x 32, and their four biases
    assert listing["chars"]["slots"][0]["blueprints"]["attention"] == 4 * (32 * 32 + 32)
    out = io.StringIO()
    show_tasks(TasksSettings(), out)
    assert all(f"\n{name}\n" in "\n" + out.getvalue() for name in TASKS)
    assert "cifar10:PATH" in out.getvalue()


def test_data_check_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cifar_folder(tmp_path)
    assert esper.__main__.main(["data", "check", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ok"
    (folder / "test_batch.bin").write_bytes((folder / "test_batch.bin").read_bytes()[:-1])
    assert esper.__main__.main(["data", "check", str(folder)]) == 2
    assert "test_batch.bin" in capsys.readouterr().err


def test_one_policy_trains_on_two_tasks_and_plays_a_third(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "both")
    words = [
        "train",
        "--task",
        "synthetic,synthetic_tokens",
        "--room-for",
        "digits_deep",
        "--rounds",
        "2",
        "--out",
        run,
    ]
    small = ["--num-envs", "3", "--horizon", "3", "--backend", "eager", "--engine", "steps_per_epoch=1,batch_size=8"]
    assert esper.__main__.main([*words, *small, "--eval-envs", "6"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        each = [row["return/synthetic"], row["return/synthetic_tokens"]]
        assert row["return"] == pytest.approx(sum(each) / 2)
    reports = [json.loads((tmp_path / "both" / f"evaluation{n}.json").read_text()) for n in ("", "-2")]
    assert [report["task"] for report in reports] == ["synthetic", "synthetic_tokens"]
    capsys.readouterr()
    again = ["evaluate", "--run", run, "--task", "digits_deep", "--num-envs", "6", "--horizon", "3", "--json", "true"]
    assert esper.__main__.main([*again, "--engine", "steps_per_epoch=1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "digits_deep" and "learned" in report["policies"]


@pytest.mark.parametrize("task", ["digits,", ",digits", "digits,digits", ""])
def test_tasks_are_named_once_each(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert esper.__main__.main(["train", "--task", task, "--out", "unused"]) == 2
    assert "--task" in capsys.readouterr().err


def test_language_tasks_report_bits_and_perplexity(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--task", "synthetic_tokens", "--num-envs", "6", "--horizon", "2", "--backend", "eager"]
    assert esper.__main__.main([*words, "--engine", "steps_per_epoch=1", "--json", "true"]) == 0
    wait = json.loads(capsys.readouterr().out)["policies"]["wait"]
    assert 1.0 < wait["test_bits"]["mean"] < 2.2  # four tokens: 2 bits for a host that knows nothing
    assert wait["test_perplexity"]["mean"] == pytest.approx(2 ** wait["test_bits"]["mean"], rel=0.01)
    assert wait["val_bits"]["mean"] == pytest.approx(wait["test_bits"]["mean"], abs=0.1)


def test_a_presets_reward_numbers_are_in_force_and_can_be_overridden() -> None:
    """The best loss of the token chain that sees both tokens is 0.54 nats, in closed form (``best_losses``)."""
    preset = build_scene(Rules(task="synthetic_tokens"), 2, "eager")
    assert float(preset.params.loss_target) == pytest.approx(0.54)
    other = build_scene(Rules(task="synthetic_tokens", rewards={"loss_target": 0.7}), 2, "eager")
    assert float(other.params.loss_target) == pytest.approx(0.7)
    assert float(build_scene(Rules(task="synthetic"), 2, "auto").params.loss_target) == 0.0


@pytest.mark.parametrize("name", TASKS)
def test_every_preset_can_be_made_as_the_commands_make_it(name):
    """Language tasks have sites of two dimensions, which no program of the native form takes."""
    engine = esper.make(name, num_envs=2)
    assert engine.mask(engine.init(0)).any(1).all()
