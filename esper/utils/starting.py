"""While a command starts: Ctrl-C ends the process at once, when nothing is there yet that could be told or saved."""

import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_command() -> bool:
    """Whether this process is about to run a module (``python -m``, while it is located), or the program ``esper``."""
    first = (sys.argv or [""])[0] if hasattr(sys, "argv") else ""
    return first == "-m" or Path(first).stem == "esper"


def runs_networks() -> bool:
    """Whether the command that this process is about to run trains or plays."""
    words = sys.argv[1:] if is_command() else []
    return words[:1] in (["train"], ["evaluate"], ["inspect"], ["export"], ["demo"], ["generate"]) and not {
        "-h",
        "--help",
    } & set(words)


@contextmanager
def ending_on_interrupt(active: bool) -> Iterator[None]:
    """Let SIGINT end the process (a shell says 130) while the block imports what takes its time.

    Python's exception would leave as a traceback, or be swallowed by a module that tries an import. A signal that is
    ignored, or that somebody else handles, stays theirs.

    Args:
      active: False: the block runs as it would without.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (active and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def collecting_nothing(active: bool) -> Iterator[None]:
    """Keep the cyclic garbage collector still while the block imports, and never let it look through what there is
    then: what modules define stays. It took a fifth of the time of a command's start.

    Args:
      active: False: the block runs as it would without, as befits a process that has garbage of its own.
    """
    if not (active and gc.isenabled()):
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
