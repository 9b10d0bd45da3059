"""``esper blueprint demo``: a kind of seed that exists only as a document, from its text to a network that grew it.

The seven stages and the store here; then a fresh process, ``python -m esper.runtime.blueprint_demo``, fetches it by its
id, computes the same numbers to the bit, and grows it in hosts of the digits.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import TextIO

import torch

from esper.leyline.config import ConfigError
from esper.runtime.build import make
from esper.runtime.rollout import rollout
from esper.runtime.tasks import named
from esper.tamiyo.policies import from_mask
from esper.tamiyo.scripted import grow
from esper.tezzeret.blueprints.site_words import words_of
from esper.tezzeret.stages import CompileJob, CompilerChild, ReadyBlueprint, compile_document, fetch
from esper.tezzeret.stages.inputs import batch_of, numbers_of
from esper.urza.store import StoreSettings, open_store
from esper.utils.settings import Parser
from esper.utils.terminal import output

NAME = "expanded"

DOCUMENT = {
    "format": 1,
    "name": NAME,
    "description": "x + 1x1(relu(GN(3x3(x)))), twice as wide within",
    "bypass": False,
    "identity_bound": 0,
    "cases": [
        {
            "source": ["conv"],
            "where": ["numbers >= 3"],
            "sizes": [{"name": "wide", "value": "2 * channels"}],
            "parameters": [
                {
                    "name": "expand",
                    "shape": ["wide", "channels", 3, 3],
                    "init": "uniform",
                    "scale": {"over_root": "9 * channels"},
                },
                {"name": "norm.weight", "shape": ["wide"], "init": "constant", "scale": 1.0},
                {"name": "norm.bias", "shape": ["wide"], "init": "constant", "scale": 0.0},
                {"name": "contract", "shape": ["channels", "wide", 1, 1], "init": "constant", "scale": 0.0},
            ],
            "train": {
                "nodes": [
                    {"name": "mixed", "op": "convolve", "inputs": ["x", "expand"], "kernel": 3},
                    {
                        "name": "normed",
                        "op": "group_norm",
                        "inputs": ["mixed", "norm.weight", "norm.bias"],
                        "groups": 1,
                    },
                    {"name": "active", "op": "relu", "inputs": ["normed"]},
                    {"name": "branch", "op": "convolve", "inputs": ["active", "contract"], "kernel": 1},
                    {"name": "sum", "op": "add", "inputs": ["x", "branch"]},
                ],
                "output": "sum",
            },
        }
    ],
}
"""No blueprint of this package."""

TASK, ENVS, EPOCHS = "digits", 8, 25


def demo_words(arguments: Sequence[str], out: TextIO | None = None) -> int:
    """Run ``demo [--store FOLDER]``; arguments and results as ``compile_words``.

    Raises:
      ConfigError: a stage failed, or the fresh process did.
    """
    out, begun = output(out), time.perf_counter()
    parser = Parser(prog="esper blueprint demo", description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--store", default="", metavar="FOLDER", help="default: one that goes when the demo ends")
    given = parser.parse_args(list(arguments))
    with tempfile.TemporaryDirectory(prefix="esper-demo-") as folder:
        place = given.store or folder
        id, digest = _stored(place, out)
        command = [sys.executable, "-m", "esper.runtime.blueprint_demo", place, id, digest]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=600)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"blueprint demo: the fresh process failed: {last}; expected growth")
    out.write(f"a fresh process:\n{done.stdout}all of it took {time.perf_counter() - begun:.0f} s\n")
    return 0


def _site() -> str:
    """Where the task's first slot is."""
    host = named(TASK).host
    site = host.points["block0"]
    return words_of(site, site)


def _stored(folder: str, out: TextIO) -> tuple[str, str]:
    """The document's id in a store, and the digest of what it computes."""
    document = json.dumps(DOCUMENT).encode()
    with open_store(StoreSettings(folder=folder)) as store, CompilerChild() as child:
        request = CompileJob(document, NAME, _site())
        id, reports = compile_document(request, store, child, lambda report: _tell(report.line, out))
        if id is None:
            raise ConfigError(f"blueprint demo: {reports[-1].line}")
        ready = fetch(store, id)
    if not isinstance(ready, ReadyBlueprint):
        raise ConfigError(f"blueprint demo: {ready.reason}: {ready.detail}")
    return id, digest_of(ready)


def _tell(line: str, out: TextIO) -> None:
    out.write(line + "\n")
    out.flush()


def digest_of(ready: ReadyBlueprint) -> str:
    """The digest of what a blueprint computes from numbers that are the same everywhere."""
    numbers = numbers_of(ready.subject, 2, torch.float32, torch.device("cpu"))
    batch = batch_of(ready.subject, "normal", 16, 2, numbers.params)
    y = ready.form.infer(numbers.params, numbers.buffers, batch.x)
    return hashlib.sha256(y.contiguous().numpy().tobytes()).hexdigest()


def grow_fetched(folder: str, id: str, digest: str, out: TextIO) -> None:
    """What the fresh process does.

    Raises:
      ConfigError: there is no such blueprint, it computes something else, or nothing grew.
    """
    begun = time.perf_counter()
    with open_store(StoreSettings(folder=folder)) as store:
        ready = fetch(store, id)
    if not isinstance(ready, ReadyBlueprint):
        raise ConfigError(f"{ready.reason}: {ready.detail}")
    taken = 1e3 * (time.perf_counter() - begun)
    if digest_of(ready) != digest:
        raise ConfigError(f"{id}: computes other numbers than where it was compiled; expected the same bits")
    cached = "compiled code from the store" if ready.cached else "compiled again"
    out.write(f"  fetched {id[:16]} in {taken:.1f} ms ({cached}): the same output to the bit\n")
    task = named(TASK)
    engine = make(task._replace(blueprints=(*task.blueprints, ready.blueprint)), ENVS, horizon=EPOCHS)
    out.write(f"  {engine.describe()[0]}\n")
    _, grown = rollout(engine, from_mask(f"grow {NAME}", grow(engine.codec, NAME)), 0)
    if not bool((grown.added > 0).all()):
        raise ConfigError(f"{NAME}: grew nowhere; expected parameters in every host")
    accuracy, added = float(grown.test_accuracy.double().mean()), float(grown.added.double().mean())
    sizes = f"{engine.structure.host.num_params} parameters and {added:.0f} that grew"
    out.write(f"  {ENVS} hosts of the {TASK}, {EPOCHS} epochs: {sizes}, {accuracy:.1f} % on test data\n")


def main() -> None:
    """The fresh process: FOLDER ID DIGEST."""
    parser = argparse.ArgumentParser(prog="python -m esper.runtime.blueprint_demo")
    for name in ("folder", "id", "digest"):
        parser.add_argument(name)
    given = parser.parse_args()
    torch.set_num_threads(1)
    grow_fetched(given.folder, given.id, given.digest, output(None))


if __name__ == "__main__":
    main()
