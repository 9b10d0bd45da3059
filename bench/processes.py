"""The loop over environments in several processes, one per processor, each with one thread and its share."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.contract import Contender, StepResult, ValidationResult
from bench.served import Served
from bench.workload import Array, Workload, save, take


class Processes:
    """One served ``loop`` per processor of this process."""

    def __init__(self, workload: Workload, options: dict[str, Any]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        folder, cores = Path(self.folder.name), sorted(os.sched_getaffinity(0))
        bounds = np.linspace(0, workload.num_envs, len(cores) + 1).round().astype(int)
        cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", folder / "inductor"))
        self.workers = []
        for worker, core in enumerate(cores):
            share = folder / f"{worker}.npz"
            save(take(workload, slice(bounds[worker], bounds[worker + 1])), share)
            self.workers.append(Served("loop", share, [core], options, cache / str(worker)))
        for worker in self.workers:
            worker.receive()

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        """Ask all, then wait for all."""
        for worker in self.workers:
            worker.send(**request)
        return [worker.receive() for worker in self.workers]

    def reset(self) -> None:
        """Initial numbers."""
        self.ask(do="reset")

    def train(self, epoch: int) -> Array:
        """Losses [k, E] of an epoch."""
        return np.concatenate([np.array(part["losses"]) for part in self.ask(do="train", epoch=epoch)], axis=1)

    def validate(self) -> ValidationResult:
        """Accuracy and effects."""
        return _joined(self.ask(do="validate"))

    def norms(self) -> Array:
        """Of the parameters of hosts and seeds."""
        return np.concatenate([np.array(part["norms"]) for part in self.ask(do="norms")])

    def step(self) -> StepResult:
        """One environment step."""
        parts = self.ask(do="step")
        return StepResult(np.concatenate([part["mean_loss"] for part in parts]), _joined(parts))

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.close()
        self.folder.cleanup()


def _joined(parts: list[dict[str, Any]]) -> ValidationResult:
    return ValidationResult(
        *(np.concatenate([np.array(part[name]) for part in parts]) for name in ValidationResult._fields)
    )


def prepare(workload: Workload, **options: Any) -> Contender:
    """Start the workers; ``options`` are those of ``bench.loop``."""
    workers = Processes(workload, options)
    return Contender(workers.reset, workers.train, workers.validate, workers.norms, workers.step, workers.close)
