"""A network's files: written, read back, run, and described by a card."""

import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from esper.engine import Engine
from esper.leyline.state import State
from esper.runtime.card import card_of
from esper.runtime.carriers import CARRIERS, Run, expect_agreement
from esper.tezzeret import modules
from esper.tolaria.data import Part
from esper.utils.documents import to_json
from esper.utils.files import replace_file
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError

TIMED, ROUNDS = 64, 15
"""Samples of a batch whose inference is timed, and how often."""

KINDS = f"{', '.join(f'*{ending} ({carrier.holds})' for ending, carrier in CARRIERS.items())}"
"""Files that can be written, for help."""


def expect_place(to: str) -> Path:
    """The file to write.

    Raises:
      SettingsError: no such kind, no folder for it, or what writes it is not installed.
    """
    path = user_path(to)
    if path.suffix not in CARRIERS or path.name == path.suffix:
        raise SettingsError(f"--to {to!r}: expected a file that ends in {', '.join(CARRIERS)}")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise SettingsError(f"--to {to}: {path.absolute().parent} is no folder that can be written")
    missing = [name for name in CARRIERS[path.suffix].needs if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"--to {to}: needs {', '.join(missing)}; expected the extra: pip install esper-growth[onnx]"
        )
    return path


def write_network(engine: Engine, state: State, env: int, path: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """Write the network of an environment, read it back, and lay its card beside it.

    Args:
      engine: of the state.
      state: [E].
      env: which.
      path: from ``expect_place``.
      told: what the card says besides; ``test_accuracy``, if it is known.

    Returns:
      the card.

    Raises:
      SettingsError: the file cannot be written, or its outputs are others.
      ConfigError: what grew cannot be written down.
    """
    exported = modules.export(engine.structure, state, env)
    test = engine.data.test
    known = {"test_accuracy": float(engine.test(state).accuracy[env])} if "test_accuracy" not in told else {}
    card = {**told, **card_of(engine, state, env, exported.whole.module), "test_samples": test.size, **known}
    card |= {"test_accuracy_exported": _accuracy(exported.whole.module.eval(), test)}
    card["inference_ms"] = _times(exported, test.inputs[:TIMED]) | {"folded_norms": exported.norms}
    carrier = CARRIERS[path.suffix]
    try:
        files = carrier.write(path, exported, card)
        run = carrier.read(path)
        card["largest_difference"] = expect_agreement(path, run, exported.whole.module, test.inputs[:TIMED])
        card["test_accuracy_of_file"] = _accuracy(run, Part(test.inputs.cpu(), test.targets.cpu()))
        card["files"] = [file.name for file in files]
        replace_file(path.with_suffix(".json"), (to_json(card, indent=2) + "\n").encode())
    except OSError as error:
        raise SettingsError(f"--to {path}: {error.strerror or error}; expected a place that can be written") from None
    return card


@torch.no_grad()
def _accuracy(run: Run | nn.Module, part: Part) -> float:
    """Percentage of targets that are the largest output."""
    hits = [run(x).argmax(-1) == y for x, y in zip(part.inputs.split(512), part.targets.split(512), strict=True)]
    return 100 * float(torch.cat(hits).double().mean())


@torch.no_grad()
def _times(exported: modules.Export, inputs: Tensor) -> dict[str, float]:
    """Milliseconds that a batch takes, whole and folded, the median of rounds that take turns."""
    x, networks = inputs, {"whole": exported.whole.module.eval(), "folded": exported.folded.module}
    rounds = [{name: _time(network, x) for name, network in networks.items()} for _ in range(ROUNDS)]
    return {name: 1e3 * median(taken[name] for taken in rounds) for name in networks}


def _time(network: Callable[[Tensor], Tensor], x: Tensor) -> float:
    start = time.perf_counter()
    network(x).cpu()
    return time.perf_counter() - start


def tell_file(card: Mapping[str, Any]) -> list[str]:
    """Lines on what was written."""
    times = card["inference_ms"]
    return [
        f"test {card['test_accuracy']:.2f} % in Esper, {card['test_accuracy_exported']:.2f} % as a module, "
        f"{card['test_accuracy_of_file']:.2f} % from the file ({card['test_samples']} samples)",
        f"inference of {TIMED} samples: {times['whole']:.2f} ms, {times['folded']:.2f} ms folded "
        f"({times['folded_norms']} norms)",
        f"written: {', '.join(card['files'])}",
    ]
