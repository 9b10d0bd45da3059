"""At the door: what people type, and what a run needs to be gone on with."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import esper
import esper.__main__
from esper.leyline.actions import Blend
from esper.leyline.config import ConfigError, Determinism, Isolation, Precision, SampleOrder
from esper.runtime import doctor, interrupt
from esper.runtime.build import devices, is_same_device, make
from esper.runtime.interrupt import Stopped, watched
from esper.runtime.policies import policies_of
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.scene import Rules, build_scene, tasks_of
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner
from esper.simic.rewards import RewardMode
from esper.tezzeret import compiler
from esper.tolaria.synthetic import synthetic
from esper.utils.settings import SettingsError

SIZES = {"num-envs": 2, "rounds": 2, "horizon": 1, "features": 8, "lstm": 8, "head": 8, "epochs": 2, "minibatches": 2}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))] + ["--backend", "eager"]
SMALL = [*TINY, "--task", "synthetic", "--engine", "steps_per_epoch=1"]


def run(*words: str) -> int:
    return esper.__main__.main([*words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one decision an episode, with its evaluation, and infinity among its numbers."""
    out = tmp_path_factory.mktemp("door") / "a run"
    words = ["--eval-envs", "6", "--engine", "host_clip=inf", "--engine", "slots=0+block1,blends=linear"]
    assert run("train", *SMALL, *words, "--out", str(out), "--heuristic", "min_epochs=0", "--progress", "off") == 0
    return out


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_everything_a_run_writes_is_json(trained: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in trained.rglob("*.json")]
    texts += (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    tables = [json.loads(text, parse_constant=refuse) for text in texts]
    assert len(tables) >= 8
    config = json.loads((trained / "config.json").read_text())
    wanted = {"steps_per_epoch": 1, "host_clip": "inf", "slots": "0+block1", "blends": "linear"}
    assert config["engine"] == wanted and config["heuristic"] == {"min_epochs": 0}


def test_going_on_needs_nothing_but_the_directory(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that the directory's refusal names works as it stands; more rounds are an extension."""
    assert run("train", *SMALL, "--out", str(trained)) == 2
    command = shlex.split(capsys.readouterr().err.split("; ")[1].removesuffix(" goes on with it\n"))
    assert command[:3] == ["python", "-m", "esper"] and run(*command[3:]) == 0
    assert "WAIT" in capsys.readouterr().out  # evaluated anew, with as many environments as before
    assert run(*command[3:], "--rounds", "3", "--eval-envs", "0") == 0
    assert load_run(trained).table["done"] == 3
    assert json.loads((trained / "config.json").read_text())["rounds"] == 3
    assert run("train", "--resume", str(trained), "--rounds", "2") == 2
    assert run("train", "--resume", "auto", "--out", str(trained), "--engine", "host_lr=0.5") == 2
    assert "'host_lr': 0.5" in capsys.readouterr().err
    assert run("train", "--resume", "auto", "--out", str(trained), "--config", str(trained / "config.json")) == 0
    for device in ("cpu:0", "auto", "cpu"):  # without an accelerator all are the CPU
        status = run("train", "--resume", str(trained), "--device", device, "--eval-envs", "0", "--dry-run")
        assert status == 0


def test_devices_are_the_same_if_they_mean_the_same() -> None:
    """Names of the CPU, of what auto takes, and of what is not here, which is a name only."""
    same = ["cpu", "cpu:0"] + ["auto"] * (len(devices()) == 1)
    for one in same:
        assert all(is_same_device(one, two) for two in same)
        assert not any(is_same_device(one, two) for two in ("cuda:63", "nowhere", *devices()[1:]))
    assert is_same_device("cuda:63", "cuda:63") and is_same_device("auto", devices()[-1])


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *SMALL, "--dry-run", "--out", str(tmp_path / "x")) == 0
    assert not (tmp_path / "x").exists() and "synthetic: eager" in capsys.readouterr().out
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        for more in ([], ["--dry-run"]):
            assert run("train", *SMALL, *more, "--out", str(place)) == 2
            assert capsys.readouterr().err.endswith("/file is no directory; expected a place for one\n")
    assert (tmp_path / "file").read_text() == "kept"


STARTS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
INTERRUPTS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:  # as modules do that try an import
    pass
"""


@pytest.mark.skipif(os.name != "posix", reason="a shell's statuses")
@pytest.mark.parametrize("words", [["-m", "esper", "tasks"], ["-m", "esper.bench"], ["bin/esper", "tasks"]])
def test_an_interrupt_while_python_still_imports_is_130_and_no_traceback(words: list[str], tmp_path: Path) -> None:
    """The first module of others that Esper imports interrupts the process, and would swallow the exception."""
    for module in ("torch", "numpy", "tensordict"):
        (tmp_path / f"{module}.py").write_text(INTERRUPTS)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "esper").write_text("import sys\nfrom esper.__main__ import main\nsys.exit(main())\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(esper.__file__).parents[1])])
    command = [sys.executable, "-c", STARTS, *words]
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", *command],
        env=os.environ | {"PYTHONPATH": paths}, cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 130 and done.stdout == "" and len(done.stderr.splitlines()) <= 1


class Asking(io.StringIO):
    """Sends a signal to its own process when words are written."""

    def __init__(self, words: str, number: int) -> None:
        super().__init__()
        self.words, self.number = words, number

    def write(self, text: str) -> int:
        if self.words in text:
            self.words = "\0"
            os.kill(os.getpid(), self.number)
        return super().write(text)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_no_success(
    number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``train && deploy`` must not deploy."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    monkeypatch.setattr(sys, "stdout", Asking("round   1/2", number))
    try:
        assert run("train", *SMALL, "--eval-envs", "0", "--progress", "lines", "--out", str(tmp_path / "a b")) == status
    finally:
        signal.signal(signal.SIGINT, before)
    told = sys.stdout.getvalue()
    assert f"stopped after round 1; python -m esper train --resume '{tmp_path}/a b' goes on" in told
    assert load_run(tmp_path / "a b").table["done"] == 1
    assert "stopped after 1 of 2 rounds" in (tmp_path / "a b" / "report.html").read_text()


def test_a_signal_during_the_update_ends_it_before_the_next_minibatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, minibatch = [], Learner._minibatch

    def interrupted(*arguments: object) -> float:
        loss = minibatch(*arguments)
        calls.append(loss)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(Learner, "_minibatch", interrupted)
    assert run("train", *SMALL, "--eval-envs", "0", "--target-kl", "1e9", "--out", str(tmp_path / "x")) == 143
    assert len(calls) == 2 and load_run(tmp_path / "x").table["done"] == 0


def test_a_watch_hears_once_and_the_second_time_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with watched() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.number == signal.SIGTERM
        with pytest.raises(Stopped, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            watch.check()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_process_ignores_stays_ignored() -> None:
    """As ``nohup`` and a shell's ``&`` ask for."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with watched() as watch:
            os.kill(os.getpid(), signal.SIGINT)
            watch.check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_step_of_an_interruptible_engine_looks_first() -> None:
    engine, watch = make("synthetic", 2, backend="eager", steps_per_epoch=1), interrupt.Watch()
    state, wait = engine.init(0), torch.zeros(2, dtype=torch.int64)
    same = interrupt.interruptible(engine, watch)
    assert torch.equal(same.step(state, wait)[0].host.params, engine.step(state, wait)[0].host.params)
    watch.number = signal.SIGINT
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        same.step(state, wait)


TASKS = {
    "digits,chars": ["digits", "chars"],
    "npz:a,b.npz": ["npz:a,b.npz"],
    "digits,npz:a,b,c.npz,chars": ["digits", "npz:a,b,c.npz", "chars"],
    "npz:a,text:b,c": ["npz:a", "text:b,c"],
    "digits,chras": ["digits", "chras"],
}


@pytest.mark.parametrize("names", TASKS)
def test_a_comma_in_a_path_is_part_of_it(names: str) -> None:
    assert tasks_of(names) == TASKS[names]


def test_paths_with_commas_and_tildes_and_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dataset is found, and the run lies in a folder of its own under ``runs``."""
    data = synthetic((1, 8, 8), num_classes=2, num_train=40, num_val=20)
    parts = {"train": data.train, "val": data.validation, "test": data.test}
    arrays = {f"{name}_inputs": part.inputs.numpy() for name, part in parts.items()}
    arrays |= {f"{name}_targets": part.targets.numpy() for name, part in parts.items()}
    np.savez(tmp_path / "d,1.npz", **arrays)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    small = ["--engine", "steps_per_epoch=1,batch_size=8", *TINY, "--eval-envs", "0"]
    for task, folder in (("npz:../../d,1.npz", "npz-d,1.npz"), ("npz:~/d,1.npz", "npz-d,1.npz")):
        assert run("train", "--task", task, *small, "--dry-run") == 0
        assert capsys.readouterr().out.startswith(f"runs/{folder}: nothing written\n")
    (tmp_path / "s.toml").write_text('task = "npz:~/d,1.npz"\nout = "~/there"\n')
    assert run("train", "--config", "~/s.toml", *small, "--dry-run") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/there: nothing written\n")
    with (tmp_path / "s.toml").open("a") as file:
        file.write('[engine]\nslots = [0, "input:logits"]\nblends = ["linear", "sigmoid"]\n')
    assert run("train", "--config", "~/s.toml", *small, "--dry-run") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/there: nothing written\n")
    assert run("evaluate", "--run", "~/nowhere") == 2
    assert f"{tmp_path}/nowhere: no such file" in capsys.readouterr().err
    assert run("data", "check", "~/d,1.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


WORDS = {
    "isolation": ("objective", Isolation.OBJECTIVE),
    "deterministic": ("strict", Determinism.STRICT),
    "precision": ("float64", Precision.FLOAT64),
    "sample_order": ("independent", SampleOrder.INDEPENDENT),
    "blends": (["cosine", "linear"], (Blend.COSINE, Blend.LINEAR)),
    "slots": ([np.int64(0), "block1"], (0, "block1")),
    "horizon": (np.int32(3), 3),
    "val_samples": (np.uint8(9), 9),
    "host_optimizer": ("adam", "adam"),
}


@pytest.mark.parametrize("name", WORDS)
def test_make_takes_what_a_flag_takes(name: str) -> None:
    written, meant = WORDS[name]
    config = make("synthetic", np.int64(2), backend="eager", **{name: written}).config
    assert getattr(config, name) == meant and type(getattr(config, name)) is type(meant)
    assert type(config.num_envs) is int


@pytest.mark.parametrize("value", [np.True_, np.float64(3), np.array([3])])
def test_what_numpy_does_not_call_an_integer_is_none(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^config.horizon = [^\n]*: expected an integer >= 1$"):
        make("synthetic", 2, backend="eager", horizon=value)


FAR = 10**22
WRONG = {
    "config.isolation = 'objectiv': expected straight_through or objective or none": {"isolation": "objectiv"},
    "config.blends: 'round': expected some of linear, sigmoid, gated, cosine": {"blends": ("round",)},
    f"config.horizon = {FAR}: expected an integer <= 1000000": {"horizon": FAR},
    f"config.val_samples = {FAR}: expected an integer <= 2147483648, or None": {"val_samples": FAR},
    "hypers.host_lr = 9.99": {"host_lr": FAR},
    "hypers.host_lr = 1000000000": {"host_lr": 10**400},
    "hypers.host_lr = True: expected a number": {"host_lr": True},
    "config.blends: 1: expected some of linear, sigmoid, gated, cosine, with + between": {"blends": ["linear", 1]},
    "config.blends: True: expected some of linear": {"blends": (True,)},
    "config.blends: np.int64(2): expected some of linear": {"blends": np.int64(2)},
    "config.horizon = 3.0: expected an integer >= 1": {"horizon": 3.0},
    "config.horizon = True: expected an integer >= 1": {"horizon": True},
}


@pytest.mark.parametrize("line", WRONG)
def test_make_says_what_it_does_not_take(line: str) -> None:
    with pytest.raises(ConfigError) as error:
        make("synthetic", 2, backend="eager", **WRONG[line])
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


BIG = "1" * 5000
LINES = {
    "esper train: unrecognized arguments: --nope": ["train", "--nope"],
    "esper train: --compile=true: unknown setting; --backend is meant": ["train", "--compile=true"],
    "esper data: the following arguments are required: path": ["data", "check"],
    "esper train: argument --lr: expected one argument": ["train", "--lr"],
    "esper train: --target-kl = inf: expected a finite number from 0": ["train", "--target-kl", "inf"],
    "esper train: --lr = 16777217.0: expected a number from 0 to 1": ["train", "--lr", "16777217"],
    "esper train: --seed = 2147483649: expected an integer from 0 to 2147483648": ["train", "--seed", "2147483649"],
    "esper train: --config a.json: seed: an integer of 5000 digits; expected at most 4000": [
        *("train", "--config", "a.json"),
        '{"seed": ' + BIG + "}",
    ],
    "esper train: --config a.toml: host_lr: an integer of 5000 digits; expected at most 4000": [
        *("train", "--config", "a.toml"),
        f"[engine]\nhost_lr = -{BIG}\n",
    ],
    "esper train: checkpoint metrics.jsonl: not readable (no NPZ archive); expected an esper checkpoint": [
        *("train", "--resume", "metrics.jsonl"),
        '{"round": 1}\n',
    ],
    "esper evaluate: task 'idx:a#classes=x': #classes = 'x': expected an integer >= 2": [
        *("evaluate", "--task", "idx:a#classes=x"),
    ],
    "esper train: task 'npz:b#classes=': #classes = '': expected an integer >= 2": [
        "train",
        "--task",
        "npz:b#classes=",
    ],
    "esper train: --engine: config.blends = (): expected a non-empty tuple": [
        *("train", *SMALL, "--engine", "blends=")
    ],
    "esper train: --backend native with --precision bf16: backend 'native': precision bf16; expected float32\n": [
        *("train", *SMALL, "--backend", "native", "--precision", "bf16"),
    ],
    "esper train: --backend native with --engine accumulate=2: backend 'native': accumulate = 2; expected 1\n": [
        *("train", *SMALL, "--backend", "native", "--engine", "accumulate=2,batch_size=8"),
    ],
    "esper train: --task: a.toml recorded 'digits,py:ours:task', which imports a module; expected --task digits,py:": [
        *("train", "--config", "a.toml"),
        'task = "digits,py:ours:task"\n',
    ],
    "esper train: --room-for = 'digits,digits': expected different names": [
        *("train", *SMALL, "--room-for", "digits,digits"),
    ],
    "esper train: --heuristic: heuristic.min_epochs = 'x': expected a number >= 0": [
        *("train", *SMALL, "--heuristic", "min_epochs=x"),
    ],
    "esper train: --heuristic: heuristic.decay = True: expected a number >= 0": [
        *("train", *SMALL, "--heuristic", "decay=true"),
    ],
    f"esper train: --heuristic: heuristic.embargo = {'1' * 60}...: expected a number >= 0": [
        *("train", *SMALL, "--heuristic", "embargo=" + "1" * 400),
    ],
    "esper train: --engine: host_lr: 2 values, one for each environment; expected one value, or --eval-envs 2 inst": [
        *("train", *SMALL, "--eval-envs", "6", "--config", "a.json"),
        '{"engine": {"host_lr": [0.1, 0.2]}}',
    ],
    "esper train: --rewards: rent_weight: 2 values, one for each environment; expected one value, or --eval-envs 2": [
        *("train", *SMALL, "--dry-run", "--config", "a.toml"),
        "[rewards]\nrent_weight = [1, 2]\n",
    ],
    r"esper train: a.toml: a\nb\x1b[2J: unknown setting": [
        *("train", "--config", "a.toml"),
        '"a\\nb\\u001b[2J" = 1\n',
    ],
    r"esper train: --rewards: rewards.a\nb: unknown; known are": [
        *("train", *SMALL, "--config", "a.toml"),
        '[rewards]\n"a\\nb" = 1\n',
    ],
    r"esper train: a.json: engine.a\nb\u2028 = None: expected a number": [
        *("train", "--config", "a.json"),
        '{"engine": {"a\\nb\\u2028": null}}',
    ],
    r"esper train: --config a.json: a\rb: stands twice; expected once": [
        *("train", "--config", "a.json"),
        '{"a\\rb": 1, "a\\rb": 2}',
    ],
    r"esper train: --heuristic: a\tb: unknown; known are": [
        *("train", *SMALL, "--heuristic", "a\tb=1"),
    ],
    r"esper evaluate: checkpoint no\nwhere: no such file": ["evaluate", "--run", "no\nwhere"],
    "esper evaluate: --policy: a.json recorded 'py:ours:policy', which imports a module; expected --policy py:ours": [
        *("evaluate", "--config", "a.json"),
        '{"policy": "py:ours:policy"}',
    ],
}
"""What is said -> the command's words; the last is the text of the file before it, if that is one."""


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_word_is_named_once_with_all_its_digits(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = LINES[line]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours.py").write_text("1 / 0\n")  # what a stranger's settings name is not imported
    if words[-1][0] in "{[" or words[-1].endswith("\n"):
        Path(words[-2]).write_text(words[-1])
        words = words[:-1]
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert told.startswith(line) and told.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_a_settings_file_may_name_what_the_command_names_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.toml").write_text('task = "py:nowhere:task"\n')
    monkeypatch.chdir(tmp_path)
    assert run("train", "--config", "a.toml", "--task", "py:nowhere:task") == 2
    assert "ModuleNotFoundError" in capsys.readouterr().err
    assert run("train", *SMALL, "--config", "a.toml", "--dry-run") == 0


def test_an_engine_without_slots_is_written_with_nothing(tmp_path: Path) -> None:
    """The host alone: as a flag, and as an empty list of a file."""
    (tmp_path / "a.toml").write_text("[engine]\nslots = []\n")
    for words in (["--engine", "slots="], ["--config", str(tmp_path / "a.toml")]):
        out = tmp_path / f"run{len(words[1])}"
        assert run("train", *SMALL, *words, "--eval-envs", "0", "--out", str(out)) == 0
        assert json.loads((out / "config.json").read_text())["engine"]["slots"] == []
        assert run("train", "--resume", str(out), "--rounds", "3") == 0


CALLS = {
    "init(1.5)": lambda engine, state: engine.init(1.5),
    "init('1')": lambda engine, state: engine.init("1"),
    "init(True)": lambda engine, state: engine.init(True),
    "init(-1)": lambda engine, state: engine.init(-1),
    "init of a list of numbers": lambda engine, state: engine.init(0, [0, 1]),
    "init of broken numbers": lambda engine, state: engine.init(0, torch.tensor([0.5, 1.0])),
    "step of a list": lambda engine, state: engine.step(state, [0, 0]),
    "step of an array": lambda engine, state: engine.step(state, np.zeros(2, dtype=np.int64)),
    "step of floats": lambda engine, state: engine.step(state, torch.zeros(2)),
    "step of flags": lambda engine, state: engine.step(state, torch.zeros(2, dtype=torch.bool)),
    "step of three": lambda engine, state: engine.step(state, torch.zeros(3, dtype=torch.int64)),
    "step of a column": lambda engine, state: engine.step(state, torch.zeros(2, 1, dtype=torch.int64)),
    "step of a number": lambda engine, state: engine.step(state, 0),
    "step from nothing": lambda engine, state: engine.step(None, torch.zeros(2, dtype=torch.int64)),
    "mask of a number": lambda engine, state: engine.mask(3),
    "observe of a dict": lambda engine, state: engine.observe({}),
    "test of nothing": lambda engine, state: engine.test(None),
    "reset of a list": lambda engine, state: engine.reset(state, [True, False], 0),
    "reset of floats": lambda engine, state: engine.reset(state, torch.ones(2), 0),
    "reset of three": lambda engine, state: engine.reset(state, torch.ones(3, dtype=torch.bool), 0),
    "observation=3": lambda engine, state: make("synthetic", 2, observation=3),
    "observation='plateau'": lambda engine, state: make("synthetic", 2, observation="plateau"),
    "differentiable='no'": lambda engine, state: make("synthetic", 2, differentiable="no"),
    "EsperEnv of a name": lambda engine, state: EsperEnv("synthetic"),
    "EsperEnv(mode='foo')": lambda engine, state: EsperEnv(engine, "foo"),
    "EsperEnv(mode=3)": lambda engine, state: EsperEnv(engine, 3),
    "EsperEnv(params=3)": lambda engine, state: EsperEnv(engine, params=3),
    "EsperEnv(interface=())": lambda engine, state: EsperEnv(engine, interface=()),
    "EsperEnv(seed=0.5)": lambda engine, state: EsperEnv(engine, seed=0.5),
}
BUILT = [
    call for call in CALLS if call.startswith(("observation", "differentiable", "EsperEnv")) and "seed" not in call
]


@pytest.fixture(scope="module")
def two() -> esper.Engine:
    return make("synthetic", 2, backend="eager", steps_per_epoch=1)


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_argument_is_a_value_error_of_one_line(call: str, two: esper.Engine) -> None:
    """``ConfigError``, which is one, where something is built."""
    with pytest.raises(ValueError) as error:
        CALLS[call](two, two.init(0))
    assert type(error.value) is (ConfigError if call in BUILT else ValueError)
    assert "\n" not in str(error.value) and ("expected" in str(error.value) or "must be" in str(error.value))


def test_what_is_meant_is_taken(two: esper.Engine) -> None:
    assert torch.equal(two.init(np.int64(3)).key, two.init(3).key)
    assert EsperEnv(two, "sparse").mode is RewardMode.SPARSE


def test_the_rule_of_thumb_takes_its_numbers_and_a_blend_that_is_on_offer() -> None:
    scene = build_scene(Rules(task="synthetic", engine={"blends": "linear"}), 2, "eager")
    assert [policy.name for policy in policies_of(scene, None, False)] == ["heuristic", "random", "wait"]
    for given, line in (
        ({"max_drop": "x"}, "--heuristic: "),
        ({"rotation": "norm+nothing"}, "--heuristic: heuristic.rotation 'nothing': expected names among"),
        ({"blend": "sigmoid"}, "--heuristic: heuristic.blend SIGMOID: expected one of LINEAR"),
        ({"min_epoch": 1}, "--heuristic: min_epoch: unknown; known are rotation, blend"),
    ):
        with pytest.raises(SettingsError, match=line):
            policies_of(scene._replace(rules=Rules(heuristic=given)), None, False)


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"esper {esper.__version__}\n"


def test_another_library_of_the_same_import_name_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "3.2" if name == "esper" else real(name))
    assert run("tasks", "--task", "synthetic") == 0
    assert "distribution 'esper' 3.2, another library" in capsys.readouterr().err
    assert any("pip uninstall esper" in line for line in doctor.diagnose(doctor.DoctorSettings())["remedies"])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_commands_write_where_standard_output_is_now(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (["tasks", "--task", "synthetic"], ["--version"], ["--help"])[length - 1]
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert run(*words) == 0 and sys.stdout.getvalue()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(compiler.find_compiler() is None or os.name != "posix", reason="no C++ compiler")
def test_cxx_as_people_set_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper in front, options behind, a path with a space; what does not run is passed over."""
    (plain,) = compiler.find_compiler()
    spaced = script(tmp_path / "my c++", f'exec "{plain}" "$@"')
    monkeypatch.setenv("CXX", f"env {plain} -O1")
    found = compiler.find_compiler()
    assert found[1:] == (plain, "-O1") and found[0].endswith("/env") and compiler.program_of(found) == plain
    for wanted, expected in (
        (spaced, spaced),
        (f"'{spaced}'", spaced),
        ("/nowhere/c++", plain),
        ("'", plain),
        ("  ", plain),
        (script(tmp_path / "broken", "exit 3"), plain),
        (str(tmp_path), plain),
    ):
        monkeypatch.setenv("CXX", wanted)
        assert compiler.find_compiler() == (expected,), wanted
