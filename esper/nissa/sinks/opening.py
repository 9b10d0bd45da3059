"""Sinks by the words that ask for them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from esper.nissa.sinks.console import ConsoleSink
from esper.nissa.sinks.fan_out import Opener
from esper.nissa.sinks.json_lines import LOG, JsonLinesSink
from esper.nissa.sinks.protocol import Opened
from esper.nissa.sinks.record import SinkError
from esper.nissa.sinks.trackers import MlflowSink, WandbSink, require_mlflow, require_wandb
from esper.utils.paths import user_path


class SinkPlace(NamedTuple):
    """What a sink is opened for.

    Attributes:
      folder: a run's directory.
      config: settings.
      out: where lines for people go.
      is_run: whether the folder is that of a run, whose files are its own.
    """

    folder: Path
    config: Mapping[str, Any]
    out: TextIO
    is_run: bool = True


class SinkWord(NamedTuple):
    """A kind of sink.

    Attributes:
      argument: what stands behind its colon, if anything.
      help: one line.
      make: opens it.
      require: raises ``SinkError`` where a package is not installed.
    """

    argument: str
    help: str
    make: Callable[[str, SinkPlace], Opened]
    require: Callable[[], object] = lambda: None


def _console(argument: str, place: SinkPlace) -> Opened:
    return Opened(ConsoleSink(place.out))


def _json(argument: str, place: SinkPlace) -> Opened:
    path = user_path(argument) if argument else place.folder / LOG
    return Opened(JsonLinesSink(path), f"log: {path}")


def _wandb(argument: str, place: SinkPlace) -> Opened:
    return Opened(WandbSink(argument, place.folder, place.config))


def _mlflow(argument: str, place: SinkPlace) -> Opened:
    return Opened(MlflowSink(argument, place.folder, place.config))


WORDS = {
    "console": SinkWord("", "a line for every event", _console),
    "json": SinkWord("FILE", f"rounds and events as JSON lines, in FILE or the run's {LOG}", _json),
    "wandb": SinkWord("PROJECT", "Weights & Biases", _wandb, require_wandb),
    "mlflow": SinkWord("URI", "MLflow", _mlflow, require_mlflow),
}
"""Kinds of sinks that ``--sinks`` takes."""


def parse_sinks(text: str) -> dict[str, tuple[str, str]]:
    """What a setting asks for.

    Args:
      text: words with commas between, each maybe with a colon and an argument.

    Returns:
      word -> kind and argument.

    Raises:
      SinkError: an unknown kind, or a package that is not installed.
    """
    found = dict[str, tuple[str, str]]()
    for word in filter(None, (part.strip() for part in text.split(","))):
        kind, _, argument = word.partition(":")
        if kind not in WORDS or (argument and not WORDS[kind].argument):
            known = ", ".join(f"{name}[:{each.argument}]" if each.argument else name for name, each in WORDS.items())
            raise SinkError(f"--sinks {word!r}: expected {known}, with commas between")
        WORDS[kind].require()
        found[word] = (kind, argument)
    return found


def openers_of(text: str, place: SinkPlace) -> dict[str, Opener]:
    """What opens them, by name; see ``parse_sinks``.

    Raises:
      SinkError: also where a log would be written among the run's own files, or by two sinks.
    """

    def opener(kind: str, argument: str) -> Opener:
        return lambda: WORDS[kind].make(argument, place)

    words = parse_sinks(text)
    _require_own_logs(words, place)
    return {word: opener(kind, argument) for word, (kind, argument) in words.items()}


def _require_own_logs(words: Mapping[str, tuple[str, str]], place: SinkPlace) -> None:
    """A line of a log in ``metrics.jsonl`` ends the run, and two that append to one file cut each other's lines."""
    usual, seen = place.folder.resolve() / LOG, dict[Path, str]()
    for word, (kind, argument) in words.items():
        if kind != "json":
            continue
        path = user_path(argument).resolve() if argument else usual
        if path in seen:
            raise SinkError(f"--sinks {word!r}: the same file as {seen[path]!r}; expected one file of each")
        if place.is_run and path.is_relative_to(usual.parent) and path != usual:
            raise SinkError(f"--sinks {word!r}: the run's own files are there; expected json, for {usual}")
        seen[path] = word
