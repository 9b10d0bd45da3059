"""What studies have found so far, in a file from which a later call goes on.

A book holds pages by name: what came of a policy in some environments, or any facts that were dear to find.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.frontier_flops import trace_flops
from esper.engine import Engine
from esper.nissa.sinks import write_text
from esper.runtime.compare import confidence, exploring
from esper.runtime.rollout import Outcome
from esper.utils.documents import as_number, to_json

GIGA = 1e9
"""FLOPs of a GFLOP."""


class Page(NamedTuple):
    """What came of a policy, float64 [E] each: columns of ``Outcome``, and what the training of its networks cost."""

    policy: str
    test_accuracy: Tensor
    val_accuracy: Tensor
    utility: Tensor
    total_reward: Tensor
    added: Tensor
    germinated: Tensor
    gflops: Tensor
    facts: dict[str, Any]


COLUMNS = Page._fields[1:-1]
"""Names of the columns."""


def page_of(engine: Engine, outcome: Outcome, **facts: Any) -> Page:
    """An outcome as a page; its further facts are the shares of exploring choices and the Brier score of confidence."""
    judged = confidence(outcome.trace)
    facts |= {"exploring": exploring(outcome.trace), "brier": None if judged is None else judged["brier"]}
    columns = {name: getattr(outcome, name).double() for name in COLUMNS if name != "gflops"}
    return Page(outcome.policy, **columns, gflops=trace_flops(engine, outcome.trace).training / GIGA, facts=facts)


class Book:
    """Pages by name, in a file."""

    def __init__(self, path: Path, setup: dict[str, Any]) -> None:
        """Open the file; one of another setup is begun anew."""
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.path, self.setup = path, setup
        self.pages: dict[str, Any] = found["pages"] if found.get("setup") == setup else {}

    def facts(self, name: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Facts, JSON-able; found now if they were not before."""
        if name not in self.pages:
            self.pages[name] = json.loads(to_json(find()))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, to_json({"setup": self.setup, "pages": self.pages}) + "\n")
            print(name, file=sys.stderr, flush=True)
        return self.pages[name]

    def page(self, name: str, play: Callable[[], Page]) -> Page:
        """What came of a policy; played now if it was not before."""

        def found() -> dict[str, Any]:
            played = play()
            return played._asdict() | {column: getattr(played, column).tolist() for column in COLUMNS}

        self.facts(name, found)
        return self.read(name)

    def read(self, name: str) -> Page:
        """A page that is there."""
        row = self.pages[name]
        columns = {column: torch.tensor(list(map(as_number, row[column])), dtype=torch.float64) for column in COLUMNS}
        return Page(row["policy"], **columns, facts=row["facts"])
