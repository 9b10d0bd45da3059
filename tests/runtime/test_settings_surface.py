"""The whole surface of settings: random documents as flags, TOML and JSON end with status 0 or 2, never a traceback.

``ESPER_DOCUMENTS`` in the environment is the number of documents, of which a fiftieth also trains two tiny rounds.
"""

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import esper.__main__
from esper.leyline.config import Config
from esper.leyline.hypers import numbers
from esper.nissa.profiles import MEASURES
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.scene import MODES
from esper.runtime.train_settings import TrainSettings
from esper.simic.ppo_config import RANGES
from esper.simic.rewards import RewardParams
from esper.tamiyo.baselines import HeuristicConfig
from esper.tamiyo.observation import Scales

DOCUMENTS = int(os.environ.get("ESPER_DOCUMENTS", "60"))

UNDRAWN = {"task", "room_for", "out", "resume", "dry_run", "backend", "num_envs", "features", "lstm", "head"}
UNDRAWN |= {"metrics_port", "metrics_host", "trace", "sinks"}
"""Drawn from what is quick, or said by the test."""

WEIRD = st.sampled_from(
    [0, -1, 1, 2, 10**22, -(10**22), 10**400, 0.5, 1e308, -0.0, math.inf, math.nan, True, "", "x", "\0", "é", "inf", []]
)
WORDS = st.sampled_from(["linear", "gated+cosine", "0", "0+1", "input:logits", "adam", "sgd", "float64", "objective"])
VALUES = WEIRD | WORDS | st.integers(-3, 40) | st.floats(0, 2) | st.text(max_size=4)


def tables(names: list[str]) -> st.SearchStrategy[dict[str, object]]:
    """A table of a few names, most of them known."""
    return st.dictionaries(st.sampled_from([*names, "nothing", ""]), VALUES, max_size=3)


def values_of(name: str) -> st.SearchStrategy[object]:
    """Values that suit a setting, and some that do not."""
    entry = next(entry for entry in fields(TrainSettings) if entry.name == name)
    low, high, choices = (entry.metadata[key] for key in ("low", "high", "choices"))
    if name in TABLES:
        return tables(TABLES[name]) | VALUES
    if choices:
        return st.sampled_from(choices) | VALUES
    if isinstance(entry.default, bool):
        return st.booleans() | VALUES
    low, high = low or 0, min(2.0 if high is None else high, 8)
    sound = st.integers(int(low), int(high)) if isinstance(entry.default, int) else st.floats(low, high)
    return sound | sound | sound | VALUES


TABLES = {
    "engine": sorted({entry.name for entry in fields(Config)} | set(numbers()) | {"device"}),
    "rewards": sorted(numbers(RewardParams)),
    "heuristic": [entry.name for entry in fields(HeuristicConfig)],
    "observation": [entry.name for entry in fields(Scales)],
    "measure": list(MEASURES),
}

DRAWN = [entry.name for entry in fields(TrainSettings) if entry.name not in UNDRAWN]

DOCUMENT = st.lists(st.sampled_from([*DRAWN, "no_such_setting"]), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: values_of(name) if name in DRAWN else VALUES for name in names})
)

SIZES = {"num-envs": 2, "features": 4, "lstm": 4, "head": 4, "task": "synthetic", "backend": "eager", "eval-envs": 0}


def plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "1" + "0" * 400 if value == 10**400 else str(value)


def as_flags(document: Mapping[str, object]) -> list[str]:
    words = []
    for name, value in document.items():
        text = (
            ",".join(f"{key}={plain(each)}" for key, each in value.items()) if isinstance(value, dict) else plain(value)
        )
        words.append(f"--{name.replace('_', '-')}={text}")
    return [word.replace("\0", "") for word in words]  # no command line can hold one


def as_toml(document: Mapping[str, object]) -> str:
    def word(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {word(each)}" for key, each in value.items()) + "}"
        if isinstance(value, float):
            return str(value) if not math.isfinite(value) or any(c in str(value) for c in ".e") else f"{value}.0"
        return json.dumps(value)

    return "".join(f"{json.dumps(name)} = {word(value)}\n" for name, value in document.items())


def words_of(document: Mapping[str, object], form: str, folder: Path) -> list[str]:
    """The document in one of its forms."""
    if form == "flags":
        return as_flags(document)
    path = folder / f"settings.{form}"
    path.write_text(as_toml(document) if form == "toml" else json.dumps(document), encoding="utf-8")
    return ["--config", str(path)]


def sized(*more: str) -> list[str]:
    return [word for name, size in SIZES.items() for word in (f"--{name}", str(size))] + list(more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("surface")


FORMS = st.sampled_from(["flags", "toml", "json"])


@settings(max_examples=DOCUMENTS, suppress_health_check=list(HealthCheck))
@given(DOCUMENT, FORMS)
def test_every_document_is_taken_or_refused_in_one_line(folder, document, form):
    words = words_of(document, form, folder)
    with pytest.MonkeyPatch.context() as patch:
        told = Told()
        patch.setattr("sys.stderr", told)
        status = esper.__main__.main(["train", *words, *sized("--out", str(folder / "none")), "--dry-run"])
    assert status in (0, 2) and not (folder / "none").exists()
    assert len(told.lines) == (status == 2), told.lines


class Told:
    """Standard error, kept by lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines += [line for line in text.split("\n") if line]

    def flush(self) -> None:
        """Nothing is held back."""


SOUND = st.fixed_dictionaries(
    {
        "horizon": st.integers(1, 3),
        "lr": st.floats(1e-4, 0.1),
        "clip": st.floats(0.01, 0.9),
        "gamma": st.floats(0, 1),
        "gae_lambda": st.floats(0, 1),
        "epochs": st.integers(1, 3),
        "minibatches": st.integers(1, 4),
        "entropy_start": st.floats(*RANGES["entropy_start"]),
        "entropy_end": st.floats(*RANGES["entropy_end"]),
        "value_weight": st.floats(0, 1e3),
        "warmup": st.floats(0, 1),
        "max_grad_norm": st.floats(1e-3, 1e9),
        "target_kl": st.floats(0, 1),
        "value_scale": st.floats(1e-3, 1e6),
        "reward": st.sampled_from(MODES),
        "seed": st.integers(0, 2**31),
    }
)
"""Settings that can learn."""


@settings(max_examples=max(DOCUMENTS // 50, 1), suppress_health_check=list(HealthCheck))
@given(SOUND, st.sampled_from(["toml", "json"]))
def test_two_tiny_rounds_change_the_policy_and_leave_it_finite(folder, document, form):
    """Or a line says why not."""
    out = Path(tempfile.mkdtemp(dir=folder))
    words = [*words_of(document, form, folder), *sized("--engine", "steps_per_epoch=1,batch_size=8"), "--out", str(out)]
    assert esper.__main__.main(["train", *words, "--rounds", "1", "--progress", "off"]) == 0
    once = load_run(out).tensors
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert esper.__main__.main(["train", "--resume", str(out), "--rounds", "2", "--progress", "lines"]) == 0
    twice = load_run(out).tensors
    names = [name for name in twice if name.startswith("policy.")]
    assert all(torch.isfinite(twice[name]).all() for name in names)
    changed = any(not torch.equal(once[name], twice[name]) for name in names)
    assert changed or "gradient not finite" in told.getvalue()
