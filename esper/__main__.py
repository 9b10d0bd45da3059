"""Commands of ``python -m esper``; ``COMMANDS`` and ``WORDS`` list them."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from esper.utils.starting import ending_on_interrupt, is_command
from esper.version import __version__

with ending_on_interrupt(__name__ == "__main__" or is_command()):
    from esper.docs.command import documents
    from esper.leyline.config import ConfigError
    from esper.nissa.sinks import SinkError
    from esper.runtime.blueprint import blueprints
    from esper.runtime.catalogue import TasksSettings, show_tasks
    from esper.runtime.dashboards import dashboards
    from esper.runtime.data_check import data_check
    from esper.runtime.demo import DemoSettings, demonstrate
    from esper.runtime.dlq import dead_letters
    from esper.runtime.doctor import DoctorSettings, diagnose, intruder
    from esper.runtime.estimate import EstimateSettings, estimate
    from esper.runtime.evaluate import EvaluateSettings, evaluate
    from esper.runtime.export import ExportSettings, export
    from esper.runtime.generate import GenerateSettings, generate
    from esper.runtime.inspect import InspectSettings, inspect
    from esper.runtime.interrupt import Stopped
    from esper.runtime.learn import learn
    from esper.runtime.own import expect_nothing_imported
    from esper.runtime.resume import settings_before
    from esper.runtime.store import artefact_store
    from esper.runtime.supervise import follow_supervisor, supervise
    from esper.runtime.surgery import SurgerySettings, perform
    from esper.runtime.sweep import sweep
    from esper.runtime.telemetry import telemetry
    from esper.runtime.train_settings import TrainSettings
    from esper.runtime.watch import watch
    from esper.runtime.worker import serve_queue
    from esper.runtime.worker_settings import WorkerSettings
    from esper.simic.episodes.shards import EpisodesError
    from esper.tolaria.data import DatasetError
    from esper.urza.checkpoint import CheckpointError
    from esper.urza.dead_letters import DeadLetterError
    from esper.urza.lock import LockError
    from esper.urza.store.contract import StoreError
    from esper.utils.documents import cause, one_line
    from esper.utils.resilience.causes import Nature, cause_of
    from esper.utils.settings import Base, SettingsError, read_settings
    from esper.utils.terminal import output

COMMANDS: dict[str, tuple[type[Any], Callable[[Any, TextIO | None], object]]] = {
    "train": (TrainSettings, learn),
    "evaluate": (EvaluateSettings, evaluate),
    "inspect": (InspectSettings, inspect),
    "export": (ExportSettings, export),
    "surgery": (SurgerySettings, perform),
    "demo": (DemoSettings, demonstrate),
    "generate": (GenerateSettings, generate),
    "tasks": (TasksSettings, show_tasks),
    "doctor": (DoctorSettings, diagnose),
    "worker": (WorkerSettings, serve_queue),
    "estimate": (EstimateSettings, estimate),
}
"""Commands that take settings: what they are, and what runs."""

BASES: dict[str, Base] = {"train": settings_before}
"""Where a command's settings come from that were not asked for, if not from their defaults."""

WORDS: dict[str, tuple[str, Callable[[Sequence[str]], int | None]]] = {
    "blueprint": ("Kinds of seed as documents: blueprint list | check | compile | demo | ...", blueprints),
    "dashboards": ("Files with which Prometheus and Grafana watch runs: dashboards export DIRECTORY", dashboards),
    "data": ("What a dataset or recorded episodes hold, and whether they load: data check | report PATH", data_check),
    "dlq": ("Writes of runs that failed: dlq ls | retry | drop [DIRECTORY]", dead_letters),
    "docs": ("Guides, runbooks, examples and the API reference: docs list | show | export | api", documents),
    "store": ("Artefacts and where they are kept: store ls | get | verify | gc | invalidate", artefact_store),
    "sweep": ("A grid of settings by seeds, a training run each: sweep [--vary NAME=A+B] -- train ...", sweep),
    "supervise": (
        "A training run that is started again when it dies: supervise [--restarts N] -- train ...",
        supervise,
    ),
    "telemetry": ("What runs measure of their environments, by profile, and what it costs", telemetry),
    "watch": ("A page on this machine that shows runs as they go: watch RUN [RUN ...] [--port N]", watch),
}
"""Commands that take words: a line on each, and what runs; it may give an exit status."""

ERRORS = (
    SettingsError,
    ConfigError,
    DatasetError,
    CheckpointError,
    DeadLetterError,
    EpisodesError,
    LockError,
    SinkError,
    StoreError,
)
"""What a command says in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      arguments: words after the program's name; None = the process's own. Without any, or with --help, the commands
        are listed.

    Returns:
      exit status: 0; 1 with one line on standard error where the machine has no more room, memory or handles, or its
      disk or compiler fails, so that trying again later may help; 2 with one line for a value that is not allowed; 130
      after SIGINT (Ctrl-C) and 143 after SIGTERM, whether or not there was something to save; 141 where the reader of
      the output went away.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        output().write(overview() + "\n")
        return 0
    if words[0] == "--version":
        output().write(f"esper {__version__}\n")
        return 0
    if words[0] not in (*COMMANDS, *WORDS):
        print(f"esper: unknown command {words[0]!r}; expected {', '.join((*COMMANDS, *WORDS))}", file=sys.stderr)
        return 2
    follow_supervisor()
    return _told(words[0], words[1:])


def _told(command: str, words: Sequence[str]) -> int:
    """Run a command, and tell whatever ends it; the exit status."""
    try:
        if (warning := intruder()) is not None and command != "doctor":
            print(f"esper: {warning}", file=sys.stderr)
        status = _run(command, words)
        output().flush()
        return status
    except ERRORS as error:
        print(one_line(f"esper {command}: {error}"), file=sys.stderr)
        return 2
    except Stopped as stopped:  # it has been told, with how to go on
        return stopped.status
    except KeyboardInterrupt:
        print(f"esper {command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough; the interpreter's last flush must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if (line := _from_outside(error)) is None:
            raise  # a fault of this program's own: all of it is told
        print(one_line(f"esper {command}: {line}"), file=sys.stderr)
        return 1


def _from_outside(error: Exception) -> str | None:
    """A line on a failure of the surroundings, with a remedy; None for any other error."""
    found = cause_of(error)
    if found.nature not in (Nature.TRANSIENT, Nature.LASTING):
        return None
    return f"{found.name}: {cause(error)}; {found.remedy}"


def _run(command: str, words: Sequence[str]) -> int:
    if command in WORDS:
        return WORDS[command][1](words) or 0
    kind, run = COMMANDS[command]
    run(read_settings(kind, words, f"esper {command}", BASES.get(command), expect_nothing_imported), None)
    return 0


def overview() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<12}{(kind.__doc__ or '').partition(chr(10))[0]}" for name, (kind, _) in COMMANDS.items()]
    lines += [f"  {name:<12}{line}" for name, (line, _) in WORDS.items()]
    return "\n".join(["usage: esper COMMAND [--help] [settings], or esper --version", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
