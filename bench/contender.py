"""One contender in its own process: ``python -m bench.contender NAME WORKLOAD.npz``.

It answers requests from standard input, one JSON line each (``bench.served`` asks them), and is idle in between.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.contract import Contender, ValidationResult
from bench.workload import Workload, load


class Entry(NamedTuple):
    """Which module renders a contender, and with which options.

    Attributes:
      module: has ``prepare(workload, **options)``.
      options: for every shape; ``BEST`` adds more for one.
      packages: whose versions matter.
      shapes: of those that it renders, the names; None: it renders all.
    """

    module: str
    options: dict[str, Any]
    packages: tuple[str, ...] = ("torch",)
    shapes: tuple[str, ...] | None = None

    def renders(self, shape: str) -> bool:
        """Whether it can do the work of a shape."""
        return self.shapes is None or shape in self.shapes


JAX, STRAIGHT = ("jax", "jaxlib", "optax"), ("digits", "cifar")
CONTENDERS = {
    "esper": Entry("bench.esper_step", {"backend": "auto"}),
    "esper-eager": Entry("bench.esper_step", {"backend": "eager"}),
    "loop": Entry("bench.loop", {}),
    "loop-compiled": Entry("bench.loop", {"compile": True}),
    "processes": Entry("bench.processes", {}),
    "processes-compiled": Entry("bench.processes", {"compile": True}),
    "jax-conv": Entry("bench.jax_step", {"form": "conv"}, JAX, STRAIGHT),
    "jax-im2col": Entry("bench.jax_step", {"form": "im2col"}, JAX, STRAIGHT),
}
"""Everyone, each in its best variant; README.md says how the variants compare."""

BEST: dict[tuple[str, str], dict[str, Any]] = {
    ("loop", "cifar"): {"channels_last": True},
    ("processes", "cifar"): {"channels_last": True},
}
"""Further options by contender and shape."""


def start(name: str, workload: Workload, overrides: dict[str, Any]) -> tuple[Contender, dict[str, Any]]:
    """Build a contender and take its first two steps.

    Returns:
      the contender, and what its start was like: seconds to the end of the first step, versions, options.

    Raises:
      ValueError: it does not render the shape.
    """
    entry = CONTENDERS[name]
    if not entry.renders(workload.structure.name):
        raise ValueError(f"{name}: shape {workload.structure.name!r}; expected one of {', '.join(entry.shapes or ())}")
    module = importlib.import_module(entry.module)
    options = entry.options | BEST.get((name, workload.structure.name), {}) | overrides
    began = time.perf_counter()
    contender = module.prepare(workload, **options)
    contender.step()
    seconds = time.perf_counter() - began
    contender.reset()
    contender.step()
    versions = {package: importlib.metadata.version(package) for package in entry.packages}
    return contender, {"first_seconds": seconds, "versions": versions, "options": options}


def timed_step(contender: Contender) -> dict[str, Any]:
    """One environment step from where things stand."""
    began = time.perf_counter()
    outcome = contender.step()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "mean_loss": outcome.mean_loss.tolist()} | _scores(outcome.scores)


def usage() -> dict[str, float]:
    """Peak memory of this process and its largest child, MB."""
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"peak_mb": sum(peaks) / 1024}


def _scores(scores: ValidationResult) -> dict[str, Any]:
    return {"accuracy": scores.accuracy.tolist(), "effect": scores.effect.tolist()}


def answer(contender: Contender, request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked."""
    match request["do"]:
        case "reset":
            contender.reset()
            return {}
        case "train":
            return {"losses": contender.train(request["epoch"]).tolist()}
        case "validate":
            return _scores(contender.validate())
        case "norms":
            return {"norms": contender.norms().tolist()}
        case "step":
            return timed_step(contender)
        case "usage":
            return usage()
    raise ValueError(f"request {request!r}: expected reset, train, validate, norms, step or usage")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--cores", default="0,1", help="processors to run on, such as 0,1; one thread each")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="another variant")
    return parser.parse_args(arguments)


def option(text: str) -> tuple[str, Any]:
    """OPTION=VALUE; true and false are booleans."""
    name, value = text.split("=", 1)
    return name, {"true": True, "false": False}.get(value, value)


def main() -> None:
    """Run one contender."""
    options = parse()
    cores = [int(core) for core in options.cores.split(",")]
    os.sched_setaffinity(0, cores)
    os.environ |= {"OMP_NUM_THREADS": str(len(cores)), "MKL_NUM_THREADS": str(len(cores)), "JAX_PLATFORMS": "cpu"}
    out = os.fdopen(os.dup(1), "w")  # what libraries print goes to standard error
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    workload = load(options.workload)
    contender, about = start(options.name, workload, dict(map(option, options.set)))
    say(about)
    for line in sys.stdin:
        say(answer(contender, json.loads(line)))
    contender.close()


if __name__ == "__main__":
    main()
