"""``esper watch RUN [RUN ...]``: a page on this machine that shows runs as they go."""

import argparse
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from esper.nissa.sinks import METRICS
from esper.runtime.live_server import LivePage
from esper.runtime.live_view import LiveRun
from esper.utils.documents import cause
from esper.utils.paths import user_path
from esper.utils.settings import Parser, SettingsError
from esper.utils.terminal import output

PORT = 8766

MOST_RUNS = 8
"""As many as the page has colours."""

logger = logging.getLogger("esper")


def watch(arguments: Sequence[str], out: TextIO | None = None) -> None:
    """Serve until interrupted.

    Args:
      arguments: words after ``esper watch``.
      out: where the page's address goes.

    Raises:
      SettingsError: a directory is no run, or named twice, there are too many, or the port is taken.
      SystemExit: ``--help``.
    """
    out, given = output(out), _parse(arguments)
    folders = [user_path(path) for path in given.runs]
    for folder in folders:
        if not (folder / METRICS).is_file() and not (folder / "config.json").is_file():
            raise SettingsError(f"watch {folder}: no run is there; expected a directory with {METRICS}")
    twice = [folder for place, folder in enumerate(folders) if folder.resolve() in _whole(folders[:place])]
    if twice:
        raise SettingsError(f"watch {twice[0]}: named twice; expected every run once")
    if len(folders) > MOST_RUNS:
        raise SettingsError(f"watch: {len(folders)} runs; expected at most {MOST_RUNS}")
    try:
        page = LivePage(live_runs(folders), given.port)
    except OSError as error:
        raise SettingsError(f"--port {given.port}: {error.strerror}; expected a port that is free, or 0") from None
    out.write(f"{page.url} shows {', '.join(map(str, folders))}; Ctrl-C ends it\n")
    out.flush()
    try:
        _until_stopped(given.seconds)
    finally:
        page.close()


def _whole(folders: Sequence[Path]) -> set[Path]:
    return {folder.resolve() for folder in folders}


def _until_stopped(seconds: float) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    end = time.monotonic() + seconds if seconds else float("inf")
    while time.monotonic() < end:
        time.sleep(min(0.5, max(end - time.monotonic(), 0.0)))


def live_runs(folders: Sequence[Path]) -> list[LiveRun]:
    """Runs by the shortest ends of their paths that tell them apart."""
    whole = [folder.resolve() for folder in folders]
    names = [folder.name for folder in whole]
    if len(set(names)) < len(names):
        names = ["/".join(folder.parts[-2:]) for folder in whole]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, start=1)]
    return [LiveRun(folder, name) for folder, name in zip(whole, names, strict=True)]


@contextmanager
def shown_live(folder: Path, port: int | None, out: TextIO) -> Iterator[None]:
    """Serve a run's page while a block runs; a port that is taken costs a warning.

    Args:
      folder: the run directory.
      port: 0 = any; None = no page.
      out: where its address goes.
    """
    page = None
    if port is not None:
        try:
            page = LivePage(live_runs([folder]), port)
            out.write(f"{page.url} shows this run while it goes\n")
        except (OSError, RuntimeError) as error:
            logger.warning("--watch: port %d: %s; the run goes on, esper watch %s shows it", port, cause(error), folder)
    try:
        yield
    finally:
        if page is not None:
            page.close()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    text = "A page on 127.0.0.1 that shows runs as they go; it reads their files and writes nothing."
    parser = Parser(prog="esper watch", description=text, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or copies of them")
    parser.add_argument("--port", type=int, default=PORT, help=f"of the page (default: {PORT}); 0 = any that is free")
    parser.add_argument("--seconds", type=float, default=0.0, help="end after so long; 0 = when interrupted")
    given = parser.parse_args(list(arguments))
    if not 0 <= given.port <= 65535:
        raise SettingsError(f"--port {given.port}: expected 0 to 65535")
    if not given.seconds >= 0:  # not a number is none of them
        raise SettingsError(f"--seconds {given.seconds:g}: expected a number from 0")
    return given
