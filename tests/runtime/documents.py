"""A blueprint that exists as a document only, tiny runs with it, and what they leave behind."""

import io
import json
from pathlib import Path

import torch
from runtime_forks import NAME

from esper.nissa.sinks import read_rows
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.requests import ask
from esper.runtime.train_settings import TrainSettings

ROUNDS = 4


def document(name="mixed", channels="channels", scale=0.0, bound=0):
    """x + w x + b at every position of a map."""
    rows = [
        {"name": "w", "shape": [channels, channels, 1, 1], "init": "constant", "scale": scale},
        {"name": "b", "shape": [channels], "init": "constant", "scale": 0},
    ]
    nodes = [
        {"name": "mix", "op": "convolve", "inputs": ["x", "w", "b"]},
        {"name": "sum", "op": "add", "inputs": ["x", "mix"]},
    ]
    case = {"source": ["conv"], "parameters": rows, "train": {"nodes": nodes, "output": "sum"}}
    table = {"format": 1, "name": name, "description": "", "bypass": False, "identity_bound": bound, "cases": [case]}
    return json.dumps(table).encode()


def settings(folder, **more):
    sizes = {"num_envs": 2, "features": 4, "lstm": 4, "head": 4, "minibatches": 2, "epochs": 1, "keep": 99}
    rest = {"horizon": 4, "rounds": ROUNDS, "eval_envs": 0, "save_every": 1e-6, "progress": "lines"}
    return TrainSettings(task=NAME, out=str(folder), **(sizes | rest | more))


class Asking(io.StringIO):
    """Output that hands documents to the run when it says a line."""

    def __init__(self, when, folder, documents):
        super().__init__()
        self.when, self.folder, self.documents = when, Path(folder), documents

    def write(self, text):
        if self.when in text:
            for data in self.documents:
                ask(self.folder, data, "mine.json")
        return super().write(text)


def chained(folder):
    return [(row["environments_hash"], row["learner_hash"]) for row in read_rows(Path(folder) / "metrics.jsonl")]


def record(folder):
    return json.loads((Path(folder) / "blueprints.json").read_text())["blueprints"]


def expect_same_end(folder, other):
    assert chained(folder) == chained(other)
    found, wanted = load_run(Path(folder)), load_run(Path(other))
    assert found.table["blueprints"] == wanted.table["blueprints"]
    assert found.table["interface"] == wanted.table["interface"]
    for name, tensor in wanted.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name
