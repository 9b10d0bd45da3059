"""Health checks: what a run will need is looked at before it does; each outcome feeds the breaker of its service."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from esper.runtime.build import devices
from esper.tezzeret.compiler import find_compiler, run_compiler
from esper.urza.lock import network_of
from esper.urza.store.opening import PREFIX, from_environment
from esper.utils.documents import cause
from esper.utils.files import replace_file
from esper.utils.paths import cache_folder, user_path
from esper.utils.resilience.breaker import Breaker
from esper.utils.resilience.causes import UNKNOWN, cause_of
from esper.utils.resilience.services import Service

LEAST_FREE = 200_000_000
"""Bytes of the disk: some checkpoints, the report, and the compiler's files of one build."""


class Unhealthy(RuntimeError):
    """What a check found wrong; a clause of a line."""


class HealthCheck(NamedTuple):
    """A health check.

    Attributes:
      name: what is looked at.
      service: whose breaker hears of it.
      look: says what was found; raises where that is not well.
      remedy: what to do then, where the failure's cause has none of its own.
    """

    name: str
    service: str
    look: Callable[[], str]
    remedy: str


class HealthFinding(NamedTuple):
    """What a check came to.

    Attributes:
      name: of the check.
      well: whether all is well.
      found: what was found, or what is wrong.
      remedy: what to do; empty where all is well.
    """

    name: str
    well: bool
    found: str
    remedy: str


def checks(folder: Path) -> tuple[HealthCheck, ...]:
    """The table of checks of this machine.

    Args:
      folder: where runs are or shall be.
    """
    place = _existing(folder)
    table = [
        HealthCheck("free disk", "files", lambda: _free(place), "free some space, or name another place by --out"),
        HealthCheck("run directory", "files", lambda: _writable(place), "name another place by --out"),
        HealthCheck(
            "cache", "cache", lambda: str(cache_folder("native").parent), "name another place in XDG_CACHE_HOME"
        ),
        HealthCheck(
            "compiles",
            "compiler",
            _compiles,
            "Esper runs eagerly; install g++ or clang++, or name one in CXX",
        ),
        HealthCheck(
            "store", "files", _store, f"name a folder of this machine in {PREFIX}FOLDER, or a database in {PREFIX}SQL"
        ),
    ]
    return (*table, *(_device(name) for name in devices()))


def examine(table: Iterable[HealthCheck], breakers: dict[str, Breaker] | None = None) -> list[HealthFinding]:
    """Carry checks out.

    Args:
      table: of ``checks``, or of other services that register their own rows.
      breakers: by service; each hears the outcomes, and an open one is not asked. Those that lack are made.
    """
    breakers = {} if breakers is None else breakers
    return [_examine(check, breakers.setdefault(check.service, Service(check.service).breaker)) for check in table]


def _examine(check: HealthCheck, breaker: Breaker) -> HealthFinding:
    try:
        return HealthFinding(check.name, True, breaker.call(check.look), "")
    except Exception as error:  # whatever a check meets, it is what is wrong
        known = UNKNOWN if isinstance(error, Unhealthy) else cause_of(error)
        remedy = check.remedy if known is UNKNOWN else known.remedy
        return HealthFinding(check.name, False, str(error) if isinstance(error, Unhealthy) else cause(error), remedy)


def _existing(folder: Path) -> Path:
    place = folder.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


def _free(place: Path) -> str:
    free = shutil.disk_usage(place).free
    if free < LEAST_FREE:
        raise Unhealthy(f"{free / 1e6:.0f} MB free in {place}; expected at least {LEAST_FREE / 1e6:.0f} MB")
    return f"{free / 1e9:.1f} GB in {place}"


def _writable(place: Path) -> str:
    with tempfile.TemporaryDirectory(dir=place, prefix=".esper-") as folder:
        replace_file(Path(folder) / "probe", b"x" * 4096)
    return f"{place} can be written"


def _store() -> str:
    """Where the store of the environment's settings keeps files; its database's locks are safe on one machine only."""
    settings = from_environment()
    place = _existing(user_path(settings.folder)) if settings.folder else cache_folder("store")
    kind = network_of(place)
    if kind is not None and not settings.sql:
        raise Unhealthy(
            f"{place} is on a network file system ({kind}), where the locks of its SQLite file may fail between "
            "machines; expected a folder of this machine"
        )
    return str(place) if kind is None else f"{place}, on a network file system ({kind}), its database elsewhere"


def _compiles() -> str:
    compiler = find_compiler()
    if compiler is None:
        raise Unhealthy("no C++ compiler")
    if os.name != "posix":
        return " ".join(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "probe.cpp", Path(folder) / "probe.so"
        source.write_text('extern "C" int probe() { return 7; }\n', encoding="utf-8")
        try:
            run_compiler([*compiler, "-shared", "-fPIC", "-o", str(made), str(source)])
        except subprocess.CalledProcessError as error:
            line = next(iter(error.stderr.strip().splitlines()), f"status {error.returncode}")
            raise Unhealthy(f"{' '.join(compiler)}: {line}") from None
    return " ".join(compiler)


def _device(name: str) -> HealthCheck:
    def look() -> str:
        found = int(torch.arange(5, device=name).sum().item())
        if found != 10:
            raise Unhealthy(f"sums 0 to 4 to {found}")
        return "answers"

    return HealthCheck(f"device {name}", name, look, "look at its driver (nvidia-smi); --device cpu runs without it")
