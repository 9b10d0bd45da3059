"""The doctor command: what Esper finds on this machine, and what to do where something is missing."""

import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, TextIO

import torch

from esper.nissa.failures import describe, group, read_failures
from esper.runtime.build import devices, make
from esper.runtime.health import checks, examine
from esper.tezzeret.choose import CHOICES
from esper.tezzeret.compiler import find_compiler
from esper.utils.documents import to_json
from esper.utils.paths import cache_folder, user_path
from esper.utils.settings import SettingsError, setting
from esper.utils.terminal import output
from esper.version import __version__

DISTRIBUTION, NAMESAKE = "esper-growth", "esper"
"""This distribution's name, and that of another one that is imported by the same name."""


@dataclass(frozen=True)
class DoctorSettings:
    """Say what Esper finds here: versions, devices, compiler, backends, disk; and what failed, by a run's log."""

    out: str = setting("runs", "where runs are or shall be: its disk is looked at")
    log: str = setting("", "a file of what a run wrote: its failures, by cause")
    json: bool = setting(False, "print one JSON object instead of text")


def intruder() -> str | None:
    """A warning where another distribution that is imported as ``esper`` is installed beside this one."""
    try:
        found = version(NAMESAKE)
    except PackageNotFoundError:
        return None
    return (
        f"warning: the distribution {NAMESAKE!r} {found}, another library, is installed beside {DISTRIBUTION!r} under "
        f"the same import name, and one overwrites the other; pip uninstall {NAMESAKE}, then install this one again"
    )


def diagnose(settings: DoctorSettings, out: TextIO | None = None) -> dict[str, Any]:
    """Print what was found.

    Args:
      settings: everything.
      out: where it goes; None = standard output.

    Returns:
      the facts: ``versions``, ``devices``, ``compiler``, ``cache``, ``backends``, ``health``, ``failures`` and
      ``remedies``.

    Raises:
      SettingsError: the log cannot be read.
    """
    failures = _failures(settings.log)
    out, remedies = output(out), [warning] if (warning := intruder()) is not None else []
    compiler = find_compiler()
    health = examine(checks(user_path(settings.out)))
    remedies += [f"{each.name}: {each.found}: {each.remedy}" for each in health if not each.well]
    backends = {name: _backend(name) for name in CHOICES}
    if compiler is not None:
        remedies += [backends[name] for name in CHOICES[1:] if backends[name] != "runs"]
    facts = {
        "versions": _versions(),
        "devices": devices(),
        "compiler": None if compiler is None else " ".join(compiler),
        "cache": str(_cache()),
        "backends": backends,
        "health": {each.name: each.found for each in health},
        "failures": failures,
        "remedies": remedies,
    }
    out.write(to_json(facts) + "\n" if settings.json else _text(facts))
    return facts


def _failures(log: str) -> list[str]:
    """What a log tells of failures, by cause; nothing without one."""
    if not log:
        return []
    try:
        lines = user_path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise SettingsError(f"--log {log}: {error.strerror}; expected a file that can be read") from None
    return describe(group(read_failures(lines)))


def _versions() -> dict[str, str]:
    """Of this package, what it needs (with the versions that are allowed) and Python."""
    found = {"esper": f"{__version__} in {Path(__file__).parents[1]}", "python": platform.python_version()}
    found["platform"] = f"{platform.platform()}, {platform.machine()}, {torch.get_num_threads()} threads"
    for name, allowed in _pins().items():
        found[name] = f"{_version(name)} (allowed: {allowed or 'any'})"
    return found


def _pins() -> dict[str, str]:
    """What the installed distribution needs, extras left out; empty in a bare checkout."""
    try:
        needed = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return dict.fromkeys(("torch", "tensordict", "torchrl", "numpy"), "")
    names = (re.match(r"([A-Za-z0-9_.-]+)\s*([^;]*)$", line) for line in needed if "extra ==" not in line)
    return {match[1]: match[2].strip() for match in names if match is not None}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cache() -> Path | str:
    try:
        return cache_folder("native").parent
    except OSError as error:
        return f"none ({error.strerror})"


def _backend(name: str) -> str:
    """Whether a backend runs here; else the reason. Inductor, whose first step takes minutes, is only built."""
    try:
        engine = make("synthetic", 1, backend=name, steps_per_epoch=1, val_samples=1)
    except ValueError as error:
        return str(error)
    if name == "auto":
        return f"takes {engine.backend.name}"
    if name != "inductor":
        engine.step(engine.init(0), torch.zeros(1, dtype=torch.int64))
    return "runs"


def _text(facts: dict[str, Any]) -> str:
    lines = [f"{name:<12}{found}" for name, found in facts["versions"].items()]
    lines += [f"{'devices':<12}{', '.join(facts['devices'])}", f"{'compiler':<12}{facts['compiler'] or 'none'}"]
    lines += [f"{'cache':<12}{facts['cache']}"]
    lines += [f"backend {name}: {found}" for name, found in facts["backends"].items()]
    lines += [f"{name}: {found}" for name, found in facts["health"].items()]
    lines += facts["failures"]
    lines += [f"! {remedy}" for remedy in facts["remedies"]] or ["nothing to mend"]
    return "\n".join(lines) + "\n"
