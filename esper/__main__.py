"""Commands: ``python -m esper train | evaluate | inspect | demo | tasks | doctor | data``."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from esper.utils.starting import ending_on_interrupt, is_command
from esper.version import __version__

with ending_on_interrupt(__name__ == "__main__" or is_command()):
    from esper.leyline.config import ConfigError
    from esper.nissa.sinks import SinkError
    from esper.runtime.catalogue import TasksSettings, show_tasks
    from esper.runtime.data_check import data_check
    from esper.runtime.demo import DemoSettings, demonstrate
    from esper.runtime.doctor import DoctorSettings, diagnose, intruder
    from esper.runtime.evaluate import EvaluateSettings, evaluate
    from esper.runtime.inspect import InspectSettings, inspect
    from esper.runtime.interrupt import Stopped
    from esper.runtime.own import expect_nothing_imported
    from esper.runtime.resume import settings_before
    from esper.runtime.train import train
    from esper.runtime.train_settings import TrainSettings
    from esper.tolaria.data import DatasetError
    from esper.urza.checkpoint import CheckpointError
    from esper.urza.lock import LockError
    from esper.utils.settings import Base, SettingsError, read_settings
    from esper.utils.terminal import output

COMMANDS: dict[str, tuple[type[Any], Callable[[Any, TextIO | None], object]]] = {
    "train": (TrainSettings, train),
    "evaluate": (EvaluateSettings, evaluate),
    "inspect": (InspectSettings, inspect),
    "demo": (DemoSettings, demonstrate),
    "tasks": (TasksSettings, show_tasks),
    "doctor": (DoctorSettings, diagnose),
}
"""Commands that take settings: what they are, and what runs."""

BASES: dict[str, Base] = {"train": settings_before}
"""Where a command's settings come from that were not asked for, if not from their defaults."""

DATA = "data"
"""The command that takes words: ``esper data check PATH``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      arguments: words after the program's name; None = the process's own. Without any, or with --help, the commands
        are listed.

    Returns:
      exit status: 0; 2 with one line on standard error for a value that is not allowed; 130 after SIGINT (Ctrl-C) and
      143 after SIGTERM, whether or not there was something to save; 141 where the reader of the output went away.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        output().write(overview() + "\n")
        return 0
    if words[0] == "--version":
        output().write(f"esper {__version__}\n")
        return 0
    if words[0] not in (*COMMANDS, DATA):
        print(f"esper: unknown command {words[0]!r}; expected {', '.join((*COMMANDS, DATA))}", file=sys.stderr)
        return 2
    try:
        if (warning := intruder()) is not None and words[0] != "doctor":
            print(f"esper: {warning}", file=sys.stderr)
        _run(words[0], words[1:])
        output().flush()
    except (SettingsError, ConfigError, DatasetError, CheckpointError, LockError, SinkError) as error:
        print(f"esper {words[0]}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:  # it has been told, with how to go on
        return stopped.status
    except KeyboardInterrupt:
        print(f"esper {words[0]}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough; the interpreter's last flush must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _run(command: str, words: Sequence[str]) -> None:
    if command == DATA:
        data_check(words)
        return
    kind, run = COMMANDS[command]
    run(read_settings(kind, words, f"esper {command}", BASES.get(command), expect_nothing_imported), None)


def overview() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<10}{(kind.__doc__ or '').partition(chr(10))[0]}" for name, (kind, _) in COMMANDS.items()]
    lines.append(f"  {DATA:<10}What a dataset's folder or file holds, and whether it loads: data check PATH")
    return "\n".join(["usage: esper COMMAND [--help] [settings], or esper --version", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
