"""Settings: flags over file over defaults, and one line for everything that is wrong."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.utils.settings import SettingsError, read_settings, setting


@dataclass(frozen=True)
class Example:
    """An example."""

    num_envs: int = setting(64, "environments", low=1, high=4096)
    rate: float = setting(0.5, "learning rate", low=0.0)
    mode: str = setting("shaped", "reward", choices=("shaped", "sparse"))
    fast: bool = setting(False, "hurry")
    out: str = setting("runs", "folder")


def read(*words):
    return read_settings(Example, words, "esper example")


def test_flags_beat_the_file_and_the_file_beats_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('num_envs = 8\nrate = 2\nmode = "sparse"\n')
    settings = read("--config", str(path), "--num-envs", "9", "--fast", "true")
    assert settings == Example(num_envs=9, rate=2.0, mode="sparse", fast=True)
    assert read() == Example()


@given(st.integers(1, 4096), st.floats(0, 1e6), st.sampled_from(["shaped", "sparse"]), st.booleans(), st.text())
def test_file_round_trip(tmp_path_factory, envs, rate, mode, fast, out):
    example = Example(envs, rate, mode, fast, out)
    path = tmp_path_factory.mktemp("settings") / "run.json"
    path.write_text(json.dumps(example.__dict__))
    assert read("--config", str(path)) == example


FAULTS = {
    "--num-envs = 0: expected an integer from 1 to 4096": ["--num-envs", "0"],
    "--num-envs = 'many': expected an integer": ["--num-envs", "many"],
    "--rate = -1.0: expected a number from 0": ["--rate", "-1"],
    "--mode = 'loud': expected shaped or sparse": ["--mode", "loud"],
    "--fast = 'maybe': expected true or false": ["--fast", "maybe"],
    "unrecognized arguments: --num": ["--num", "3"],
    "--rate = nan: expected": ["--rate", "nan"],
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_flags_are_one_line(message):
    with pytest.raises(SettingsError) as error:
        read(*FAULTS[message])
    assert message in str(error.value) and "\n" not in str(error.value)


FILES = {
    "num_env: unknown setting; did you mean 'num_envs'?": ("a.toml", "num_env = 3"),
    "rate = 'x': expected a number": ("a.toml", "rate = 'x'"),
    "fast = 1: expected true or false": ("a.toml", "fast = 1"),
    "num_envs = True: expected an integer": ("a.json", '{"num_envs": true}'),
    "num_envs = 2.5: expected an integer": ("a.json", '{"num_envs": 2.5}'),
    "found a list; expected a table": ("a.json", "[1]"),
    "expected a .toml or .json file": ("a.yaml", "x: 1"),
    "a.toml: ": ("a.toml", "num_envs = = 3"),
    "No such file": ("missing.toml", None),
}


@pytest.mark.parametrize("message", FILES)
def test_bad_files_are_one_line(message, tmp_path):
    name, text = FILES[message]
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError) as error:
        read("--config", str(tmp_path / name))
    assert message in str(error.value) and "\n" not in str(error.value)
