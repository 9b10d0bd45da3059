"""What the documents name is there: commands, flags, settings, metrics, files, links, texts of errors."""

import contextlib
import io
import os
import re
import shlex
from dataclasses import fields
from functools import cache
from importlib import import_module

import pytest
from docs_texts import (
    DOCUMENTS,
    FOLDER,
    PACKAGE,
    REPOSITORY,
    anchors,
    commands,
    esper_words,
    links,
    name_of,
    source_texts,
    source_words,
    spans,
    text_of,
    transcripts,
)

from esper.__main__ import BASES, COMMANDS, WORDS, main
from esper.bench import settings as bench_settings
from esper.leyline.config import Config
from esper.leyline.hypers import numbers
from esper.nissa.dashboards.alerts import ALERTS
from esper.nissa.metric_table import TABLE
from esper.runtime.own import expect_nothing_imported
from esper.runtime.tasks import SOURCES, TASKS
from esper.simic.offline.config import OfflineConfig
from esper.simic.rewards import RewardParams
from esper.tamiyo.baselines import HeuristicConfig
from esper.utils.settings import read_settings

FOREIGN = {
    "pip",
    "curl",
    "prometheus",
    "torchrun",
    "git",
    "ruff",
    "mypy",
    "pytest",
    "python",
    "python3",
    "ls",
    "createdb",
}
FOREIGN |= {"redis-server", "grafana-server", "df", "ulimit", "systemctl", "tensorboard", ".ci/run", ".ci/platforms"}
"""Programs of others, and this repository's own scripts."""

TABLES = {
    "--engine": {entry.name for entry in fields(Config)} | {*numbers()},
    "--rewards": {*numbers(RewardParams)},
    "--offline": {entry.name for entry in fields(OfflineConfig)},
    "--heuristic": {entry.name for entry in fields(HeuristicConfig)},
}
"""Names that tables of settings know."""

VARIABLES = {"CXX", "XDG_CACHE_HOME", "TRACEPARENT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "OMP_NUM_THREADS"}
VARIABLES |= {"MLFLOW_ALLOW_FILE_STORE"}
"""Variables of the environment that are not Esper's own."""


@cache
def flags_of(name):
    """Flags that a command's help names; of ``blueprint`` those of its actions, too."""
    texts = [help_of([name, "--help"])]
    if name == "blueprint":
        actions = re.findall(r"^  (?:blueprint )?(\w+) ", texts[0], re.M)
        texts += [help_of([name, action, "--help"]) for action in actions if action in texts[0]]
    return frozenset(re.findall(r"--[a-z][a-z0-9-]*", " ".join(texts)))


def help_of(words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        main(words)
    return out.getvalue()


def check_esper(words):
    """Read a command's settings, or look for its flags in its help."""
    name, rest = words[0], list(words[1:])
    assert name in COMMANDS or name in WORDS, name
    if name in ("supervise", "sweep"):
        check_flags(name, rest[: rest.index("--")] if "--" in rest else rest)
        return check_esper(rest[rest.index("--") + 1 :]) if "--" in rest else None
    if name in WORDS or "--help" in rest:
        return check_flags(name, rest)
    assert all("=" in entry for flag in TABLES for entry in values_after(rest, flag)), words
    for flag, known in TABLES.items():
        given = {entry.partition("=")[0] for entry in values_after(rest, flag)}
        assert given <= known, f"{flag}: {given - known}"
    read_settings(COMMANDS[name][0], rest, name, None, expect_nothing_imported)
    return None


def check_flags(name, rest):
    given = {word.partition("=")[0] for word in rest if word.startswith("--") and word != "--"}
    assert given <= flags_of(name) | {"--help"}, f"{name}: {given - flags_of(name)}"


def values_after(words, flag):
    return [entry for at, word in enumerate(words[:-1]) if word == flag for entry in words[at + 1].split(",")]


def check_other(words):
    """A benchmark's, an example's or another program's command."""
    if "-m" in words:
        module = words[words.index("-m") + 1]
        if module == "esper.bench":
            return bench_settings.read_arguments(list(words[words.index("-m") + 2 :]))
        if module.startswith("bench."):
            return check_benchmark(module, words)
        if module.startswith("esper.docs.examples."):
            kind = next(each for name, each in vars(import_module(module)).items() if name.endswith("ExampleSettings"))
            return read_settings(kind, list(words[words.index("-m") + 2 :]), module)
    assert words[0].rpartition("/")[2] in {name.rpartition("/")[2] for name in FOREIGN}, words[0]
    return None


def check_benchmark(module, words):
    path = REPOSITORY / (module.replace(".", "/") + ".py")
    assert path.exists(), module
    book = "".join(text_of(each) for each in (REPOSITORY / "bench").glob("*.py"))
    for word in words[words.index("-m") + 2 :]:
        if word.startswith("--"):
            name = word.partition("=")[0]
            assert f'"{name}"' in book or name[2:].replace("-", "_") in book, word


@pytest.mark.parametrize("command", commands(), ids=lambda command: shlex.join(command.words)[:60])
def test_a_command_exists_and_its_settings_are_allowed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = esper_words(command.words)
    return_value = check_other(command.words) if words is None else check_esper(words) if words else None
    del return_value


def test_there_are_commands():
    assert len(commands()) > 60
    assert not BASES.keys() - COMMANDS.keys()


def test_every_flag_in_a_sentence_is_one_of_a_command():
    known = {"--help", "--version", "--nproc-per-node", "--max-restarts", "--standalone"}
    known |= {f"--{entry.name.replace('_', '-')}" for kind, _ in COMMANDS.values() for entry in fields(kind)}
    known |= {"--config"}.union(*(flags_of(name) for name in WORDS))
    folders = (PACKAGE / "bench", REPOSITORY / "bench", FOLDER / "examples")
    bench = "".join(text_of(path) for folder in folders for path in folder.glob("*.py"))
    known |= {*re.findall(r"--[a-z][a-z0-9-]*", bench)}
    known |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): .* = setting\(", bench, re.M)}
    checked = 0
    for path in DOCUMENTS:
        for span in spans(path):
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span):
                assert flag in known, f"{name_of(path)}: {flag}"
                checked += 1
    assert checked > 60


def is_path(span):
    return re.fullmatch(r"(esper|bench|tests|kernels)/[\w/.-]+", span) is not None


def test_every_name_in_a_sentence_is_in_the_code():
    """Settings, metrics, names of files: a word with an underscore is one of the source's, a variable is read."""
    shipped = {metric.sample for metric in TABLE} | {metric.name for metric in TABLE}
    checked = 0
    for path in DOCUMENTS:
        for span in spans(path):
            for word in re.findall(r"\b[a-z]\w*_\w+\b", "" if is_path(span) else span):
                assert word in source_words() or word in shipped, f"{name_of(path)}: {word}"
                checked += 1
            for word in re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", span):
                stem = word.removeprefix("ESPER_STORE_").lower()
                known = word in VARIABLES or word in source_words() or stem in ("redis", "sql", "objects", "folder")
                assert known or word.startswith("MKL"), f"{name_of(path)}: {word}"
    assert checked > 30


def test_every_dotted_name_can_be_imported():
    for path in DOCUMENTS:
        for span in spans(path):
            for dotted in re.findall(r"^esper(?:\.\w+)+", span):
                if span.startswith(f"{dotted}/") or dotted.endswith(".svg"):
                    continue
                module, *rest = dotted, *[]
                while True:
                    try:
                        found = import_module(module)
                        break
                    except ModuleNotFoundError:
                        module, _, last = module.rpartition(".")
                        rest.insert(0, last)
                for name in rest:
                    found = getattr(found, name)


def test_every_task_metric_and_alert_in_a_sentence_exists():
    alerts, samples = {alert.name for alert in ALERTS}, set()
    for metric in TABLE:
        samples |= {metric.sample, metric.name, f"{metric.name}_bucket", f"{metric.name}_sum", f"{metric.name}_count"}
    for path in DOCUMENTS:
        for span in spans(path):
            assert not re.fullmatch(r"Esper[A-Z]\w+", span) or span in alerts | {"EsperEnv"}, span
            assert not re.fullmatch(r"esper_\w+", span) or span in samples, span
        for name in re.findall(r"`--task ([\w:,]+)`", text_of(path)):
            assert {each.partition(":")[0] for each in name.split(",")} <= {*TASKS, *SOURCES, "py"}, name


def test_every_relative_link_leads_somewhere():
    checked = 0
    for path in DOCUMENTS:
        for target in links(path):
            if target.startswith(("http://", "https://")):
                continue
            file, _, anchor = target.partition("#")
            place = path.parent / file if file else path
            assert place.exists(), f"{name_of(path)}: {target}"
            assert not anchor or anchor in anchors(place.resolve()), f"{name_of(path)}: {target}"
            checked += 1
    assert checked > 30


def test_every_path_in_a_sentence_is_there():
    for path in DOCUMENTS:
        for span in spans(path):
            if is_path(span):
                assert (REPOSITORY / span).exists(), f"{name_of(path)}: {span}"


def error_texts():
    """First cells of the tables that begin with ``it says``."""
    found = []
    for table in re.findall(r"^\| it says .*?(?=^\n)", text_of(FOLDER / "troubleshooting.md"), re.M | re.S):
        found += re.findall(r"^\| `([^`]+)` \|", table, re.M)
    return found


MADE_ELSEWHERE = {
    "unrecognized arguments: …": "argparse",
    "out of memory": "torch and the system",
    "too many open files": os.strerror(24).lower(),
}
"""Texts of others."""


def quoted():
    """Texts of errors in the table, and in the sentences of any document: code with an ellipsis."""
    sentences = [span for path in DOCUMENTS for span in spans(path) if "…" in span]
    return sorted({*error_texts(), *sentences})


@pytest.mark.parametrize("text", quoted())
def test_a_text_of_an_error_is_in_the_source(text):
    assert text in MADE_ELSEWHERE or any(text in source for source in source_texts()), text


def test_there_are_texts_of_errors_and_each_says_something():
    assert len(error_texts()) > 45 and len(transcripts()) > 20
    assert all(len(text.replace("…", "").strip(" :=;()")) >= 4 for text in error_texts())


@pytest.mark.parametrize(
    ("document", "words", "said"), transcripts(), ids=[shlex.join(words)[:60] for _, words, _ in transcripts()]
)
def test_a_quoted_answer_is_what_the_command_says(document, words, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    status = main(list(words[1:]))
    told = capfd.readouterr()
    pattern = ".*".join(map(re.escape, said.split("…")))
    assert re.fullmatch(pattern, (told.err or told.out).strip(), re.S), told.err or told.out
    assert status == (2 if told.err else 0)
