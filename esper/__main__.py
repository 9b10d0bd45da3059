"""Commands: ``python -m esper train | evaluate | inspect | demo | tasks | data``."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from esper.leyline.config import ConfigError
from esper.nissa.sinks import SinkError
from esper.runtime.catalogue import TasksSettings, show_tasks
from esper.runtime.data_check import data_check
from esper.runtime.demo import DemoSettings, demonstrate
from esper.runtime.evaluate import EvaluateSettings, evaluate
from esper.runtime.inspect import InspectSettings, inspect
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings
from esper.tolaria.data import DatasetError
from esper.urza.checkpoint import CheckpointError
from esper.utils.settings import SettingsError, read_settings

COMMANDS: dict[str, tuple[type[Any], Callable[[Any, TextIO], object]]] = {
    "train": (TrainSettings, train),
    "evaluate": (EvaluateSettings, evaluate),
    "inspect": (InspectSettings, inspect),
    "demo": (DemoSettings, demonstrate),
    "tasks": (TasksSettings, show_tasks),
}
"""Commands that take settings: what they are, and what runs."""

DATA = "data"
"""The command that takes words: ``esper data check PATH``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      arguments: words after the program's name; None = the process's own. Without any, or with --help, the commands
        are listed.

    Returns:
      exit status: 0; 2 with one line on standard error for a value that is not allowed; 130 for an interruption
      where there was nothing to save; 141 where the reader of the output went away.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] not in (*COMMANDS, DATA):
        print(f"esper: unknown command {words[0]!r}; expected {', '.join((*COMMANDS, DATA))}", file=sys.stderr)
        return 2
    try:
        _run(words[0], words[1:])
        sys.stdout.flush()
    except (SettingsError, ConfigError, DatasetError, CheckpointError, SinkError) as error:
        print(f"esper {words[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"esper {words[0]}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough; the interpreter's last flush must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _run(command: str, words: Sequence[str]) -> None:
    if command == DATA:
        data_check(words, sys.stdout)
        return
    kind, run = COMMANDS[command]
    run(read_settings(kind, words, f"esper {command}"), sys.stdout)


def overview() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<10}{(kind.__doc__ or '').partition(chr(10))[0]}" for name, (kind, _) in COMMANDS.items()]
    lines.append(f"  {DATA:<10}What a dataset's folder or file holds, and whether it loads: data check PATH")
    return "\n".join(["usage: esper COMMAND [--help] [settings]", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
