"""Settings: flags over file over defaults, and one line for everything that is wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.runtime.evaluate import EvaluateSettings
from esper.utils.settings import SettingsError, Value, read_settings, setting, spell


@dataclass(frozen=True)
class Example:
    """An example."""

    num_envs: int = setting(64, "environments", low=1, high=4096)
    rate: float = setting(0.5, "learning rate", low=0.0)
    mode: str = setting("shaped", "reward", choices=("shaped", "sparse"))
    fast: bool = setting(False, "hurry")
    out: str = setting("runs", "folder")
    terms: Mapping[str, Value] = setting({"rent": 1}, "numbers by name")


def read(*words):
    return read_settings(Example, words, "esper example")


def test_flags_beat_the_file_and_the_file_beats_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('num_envs = 8\nrate = 2\nmode = "sparse"\n')
    settings = read("--config", str(path), "--num-envs", "9", "--fast", "true")
    assert settings == Example(num_envs=9, rate=2.0, mode="sparse", fast=True)
    assert read() == Example()


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))  # what a file can be named


@given(st.integers(1, 4096), st.floats(0, 1e6), st.sampled_from(["shaped", "sparse"]), st.booleans(), texts)
def test_file_round_trip(tmp_path_factory, envs, rate, mode, fast, out):
    example = Example(envs, rate, mode, fast, out)
    path = tmp_path_factory.mktemp("settings") / "run.json"
    path.write_text(json.dumps(example.__dict__))
    assert read("--config", str(path)) == example


names = st.sampled_from(["a", "rent", "rent_weight", "steps_2"])  # few, so that flags and file share some
words = st.from_regex(r"[g-m]{1,6}", fullmatch=True).filter(lambda word: word not in ("inf", "infinity"))
values = st.integers() | st.floats(allow_nan=False) | st.booleans() | words


@given(st.dictionaries(names, values, max_size=4), st.dictionaries(names, values, max_size=4))
def test_tables_on_the_command_line_and_in_a_file(tmp_path_factory, table, flags):
    """Kinds and bits are kept (an int stays an int), and flags beat the file name by name."""

    def word(value):
        return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else value

    def same(found, expected):
        return found == expected and {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in expected.items()}

    text = ",".join(f"{name}={word(value)}" for name, value in flags.items())
    assert same(read("--terms", text).terms, flags)
    path = tmp_path_factory.mktemp("settings") / "run.json"
    path.write_text(json.dumps({"terms": table}))
    assert same(read("--config", str(path)).terms, table)
    assert same(read("--config", str(path), "--terms", text).terms, table | flags)


def test_a_table_of_a_toml_file_and_the_default(tmp_path):
    (tmp_path / "a.toml").write_text("num_envs = 2\n[terms]\nrate = 0.5\nsteps = 3\nsharp = true\nlimit = inf\n")
    assert read("--config", str(tmp_path / "a.toml")).terms == {
        "rate": 0.5,
        "steps": 3,
        "sharp": True,
        "limit": float("inf"),
    }
    assert read().terms == {"rent": 1} and read().terms is not read().terms


FAULTS = {
    "--terms = 'rent': expected name=value,name=value": ["--terms", "rent"],
    "--terms = 'rent=1,,x=2': expected name=value": ["--terms", "rent=1,,x=2"],
    "--terms = 'rent=1,rent=2': expected name=value": ["--terms", "rent=1,rent=2"],
    "--terms = '=1': expected name=value": ["--terms", "=1"],
    "--terms = 'a=1=2': expected name=value": ["--terms", "a=1=2"],
    "--num-envs = 0: expected an integer from 1 to 4096": ["--num-envs", "0"],
    "--num-envs = 'many': expected an integer": ["--num-envs", "many"],
    "--rate = -1.0: expected a finite number from 0": ["--rate", "-1"],
    "--mode = 'loud': expected shaped or sparse": ["--mode", "loud"],
    "--fast = 'maybe': expected true or false": ["--fast", "maybe"],
    "unrecognized arguments: --num": ["--num", "3"],
    "--rate = nan: expected": ["--rate", "nan"],
    "--rate = inf: expected a finite number": ["--rate", "inf"],
    "--rate = -inf: expected a finite number": ["--rate=-inf"],
    "--terms: rent: given twice, 1 and 2; expected once": ["--terms", "rent=1", "--terms", "x=3,rent=2"],
    "--num-envs = 10000000000000000000000: expected an integer from 1": ["--num-envs", "1" + "0" * 22],
    "expected an integer from 1 to 4096": ["--num-envs", "9" * 5000],
    "--fast = 'perhaps'": ["--fast", "perhaps"],
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_flags_are_one_line(message):
    with pytest.raises(SettingsError) as error:
        read(*FAULTS[message])
    assert message in str(error.value) and "\n" not in str(error.value)


FILES = {
    "terms = 3: expected name=value,name=value": ("a.toml", "terms = 3"),
    "terms.x = [[1]]: expected a number, true or false, a word": ("a.toml", "[terms]\nx = [[1]]"),
    "terms.x = None: expected a number": ("a.json", '{"terms": {"x": null}}'),
    "num_env: unknown setting; did you mean 'num_envs'?": ("a.toml", "num_env = 3"),
    "rate = 'x': expected a finite number": ("a.toml", "rate = 'x'"),
    "fast = 1: expected true or false": ("a.toml", "fast = 1"),
    "num_envs = True: expected an integer": ("a.json", '{"num_envs": true}'),
    "num_envs = 2.5: expected an integer": ("a.json", '{"num_envs": 2.5}'),
    "found a list; expected a table": ("a.json", "[1]"),
    "expected a .toml or .json file": ("a.yaml", "x: 1"),
    "a.toml: ": ("a.toml", "num_envs = = 3"),
    "No such file": ("missing.toml", None),
    "num_envs = 10000000000000000000000: expected an integer from 1": ("a.json", '{"num_envs": 1%s}' % ("0" * 22)),
    "rate = 1000": ("a.json", '{"rate": 1%s}' % ("0" * 400)),
    "rate = -1000": ("a.toml", f"rate = -1{'0' * 400}"),
    "num_envs = an integer of 20000 bits": ("a.toml", f"num_envs = 0x{'f' * 5000}"),
    "rate = nan: expected a finite number": ("a.json", '{"rate": NaN}'),
    "rate = inf: expected a finite number": ("a.toml", "rate = inf"),
    "out = 'a\\x00b': expected text": ("a.json", '{"out": "a\\u0000b"}'),
    "out = '\\ud800': expected text": ("a.json", '{"out": "\\ud800"}'),
    "num_envs: stands twice; expected once": ("a.json", '{"num_envs": 3, "num_envs": 4}'),
    "nested too deeply": ("a.json", '{"terms": ' + "[" * 100_000),
    "mode = datetime.date(2026, 1, 1)": ("a.toml", "mode = 2026-01-01"),
}


@pytest.mark.parametrize("message", FILES)
def test_bad_files_are_one_line(message, tmp_path):
    name, text = FILES[message]
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError) as error:
        read("--config", str(tmp_path / name))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_setting_under_its_old_name_names_its_heir(tmp_path):
    with pytest.raises(SettingsError, match=r"--compile: unknown setting; --backend is meant"):
        read_settings(EvaluateSettings, ["--compile", "false"], "esper evaluate")
    path = tmp_path / "old.toml"
    path.write_text("compile = false\n")
    with pytest.raises(SettingsError, match=r"compile: unknown setting; did you mean 'backend'\?"):
        read_settings(EvaluateSettings, ["--config", str(path)], "esper evaluate")


SPELT = {True: (["--fast"], ["--fast", "true"], ["--fast=TRUE"]), False: (["--no-fast"], ["--fast", "false"], [])}


@pytest.mark.parametrize("value", SPELT)
def test_booleans_are_spelt_in_one_way_and_its_short_forms(value):
    for words in SPELT[value]:
        assert read(*words).fast is value and read(*words, "--num-envs", "3") == Example(num_envs=3, fast=value)
    assert spell(["--json", "PATH", "--json"], ["json"], positionals=True) == ["--json=true", "PATH", "--json=true"]


def test_flags_and_files_given_more_than_once(tmp_path):
    """Tables add up; of single values, and of files, the later counts."""
    (tmp_path / "a.toml").write_text("rate = 1\nnum_envs = 2\n[terms]\nx = 1\ny = 1")
    (tmp_path / "b.json").write_text('{"rate": 3, "terms": {"y": 2}}')
    files = ["--config", str(tmp_path / "a.toml"), "--config", str(tmp_path / "b.json")]
    found = read(*files, "--terms", "z=3", "--terms", "w=4", "--num-envs", "7", "--num-envs", "8")
    assert found == Example(num_envs=8, rate=3.0, terms={"x": 1, "y": 2, "z": 3, "w": 4})


def test_a_list_in_a_file_is_several_words(tmp_path):
    (tmp_path / "a.toml").write_text('[terms]\nslots = [0, "input:logits"]\nlimit = "inf"\n')
    assert read("--config", str(tmp_path / "a.toml")).terms == {"slots": (0, "input:logits"), "limit": float("inf")}


def test_a_file_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.json").write_text('{"num_envs": 5}')
    assert read("--config", "~/a.json").num_envs == 5
