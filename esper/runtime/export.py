"""The export command: the network that grew in one environment, in files that need nothing of Esper."""

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from esper.runtime.card import card_of
from esper.runtime.carriers import CARRIERS, Run, expect_agreement
from esper.runtime.one_policy import OneSettings, one_policy
from esper.runtime.rollout import rollout
from esper.tezzeret import modules
from esper.tolaria.data import Part
from esper.utils.documents import to_json
from esper.utils.files import replace_file
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError, setting
from esper.utils.terminal import output

TIMED, ROUNDS = 64, 15
"""Samples of a batch whose inference is timed, and how often."""


@dataclass(frozen=True)
class ExportSettings(OneSettings):
    """Write the network that grew in one environment, as plain PyTorch or ONNX."""

    to: str = setting("", f"file to write: {', '.join(f'*{ending} ({c.holds})' for ending, c in CARRIERS.items())}")
    json: bool = setting(False, "print the card instead of text")


def export(settings: ExportSettings, out: TextIO | None = None) -> dict[str, Any]:
    """Play an episode, and write the network of one environment; its card lies beside it.

    Args:
      settings: everything.
      out: where the text or the card goes; None = standard output.

    Returns:
      the card.

    Raises:
      SettingsError, CheckpointError: the run cannot be read, a name or number is not allowed, or the file cannot be
        written.
      ConfigError: what grew cannot be written down.
    """
    path = _expect_place(settings.to)
    loaded, name, scene, policy = one_policy(settings)
    engine = scene.engine
    state, outcome = rollout(engine, policy, settings.seed, scene.mode, scene.params)
    exported = modules.export(engine.structure, state, settings.env)
    played = {"task": scene.rules.task, "env": settings.env, "seed": settings.seed, "policy": name}
    played |= {"run": settings.run or None, "round": None if loaded is None else loaded.table["done"]}
    card = played | card_of(engine, state, settings.env, exported.whole.module)
    test = engine.data.test
    card |= {"test_samples": test.size, "test_accuracy": float(outcome.test_accuracy[settings.env])}
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
    output(out).write(to_json(card) + "\n" if settings.json else tell(card))
    return card


def _expect_place(to: str) -> Path:
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


def tell(card: dict[str, Any]) -> str:
    """The card as text."""
    lines = [
        f"{card['task']}, environment {card['env']} of seed {card['seed']}, {card['policy']}: {card['host']['name']}, "
        f"{card['host']['parameters']} parameters; grown {card['parameters']}"
    ]
    for seed in card["seeds"]:
        said = f"  slot {seed['slot']} {seed['place']}: {seed['blueprint']}, {seed['parameters']} parameters, "
        said += f"germinated at epoch {seed['germinated']}, {seed['stage']}, alpha {seed['alpha']:.2f}"
        if seed["contribution"] is not None:
            said += f", contribution {seed['contribution']:+.2f} ± {seed['contribution_error']:.2f} pp"
        lines.append(said + ("" if seed["in_network"] else " (not in the network)"))
    lines.append(
        f"test {card['test_accuracy']:.2f} % in Esper, {card['test_accuracy_exported']:.2f} % as a module, "
        f"{card['test_accuracy_of_file']:.2f} % from the file ({card['test_samples']} samples)"
    )
    times = card["inference_ms"]
    lines.append(
        f"inference of {TIMED} samples: {times['whole']:.2f} ms, {times['folded']:.2f} ms folded "
        f"({times['folded_norms']} norms)"
    )
    return "\n".join([*lines, f"written: {', '.join(card['files'])}"]) + "\n"
