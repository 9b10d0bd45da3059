"""Esper's own step."""

import numpy as np
import torch

from bench.contract import Contender, StepResult, ValidationResult
from bench.draw import WorkloadConfig, at_epoch, build_engine, draw_state
from bench.workload import Array, Workload
from esper.kasmina.slot_table import take_table
from esper.leyline.events import Evaluation
from esper.leyline.learners import learners_of, with_learners
from esper.leyline.stages import ACTIVE
from esper.tezzeret.batches import batch_at
from esper.tolaria.evaluation import evaluate
from esper.tolaria.training import draw_batches


class EsperStep:
    """An engine and a state. A step is ``engine.step``, all of it: life cycle, governor and signals included."""

    def __init__(self, workload: Workload, backend: str, device: str) -> None:
        structure = workload.structure
        share = float((workload.kind >= 0).mean()) if workload.kind.size else 0.0
        config = WorkloadConfig(
            structure.name, workload.num_envs, structure.precision, structure.shared, share, structure.seed
        )
        sizes = {"steps_per_epoch": workload.steps, "batch_size": workload.indices.shape[3]}
        self.engine = build_engine(config, backend, device, **sizes)
        self.start = draw_state(self.engine, config)
        if not np.array_equal(self.start.host.params.cpu().numpy(), workload.host):
            raise ValueError("esper: the draw is not the workload's; expected the same initial hosts")
        self.table = take_table(self.start.slots)
        self.plan = self.engine.backend.plan(self.table, self.start.key.device)
        self.wait = torch.zeros(workload.num_envs, dtype=torch.int64, device=self.start.key.device)
        self.state = self.start

    def reset(self) -> None:
        """The state as drawn."""
        self.state = self.start

    def train(self, epoch: int) -> Array:
        """The SGD steps of an epoch one by one, keeping every loss."""
        engine, learners, losses = self.engine, learners_of(self.state), []
        batches = draw_batches(engine.config, at_epoch(self.state, epoch), engine.data)
        for step in range(batches.length):
            batch, alphas = batch_at(engine.structure, batches, step), self.state.slots.alpha
            learners, seen = engine.backend.minibatch_step(engine.hypers, self.plan, learners, alphas, batch)
            losses.append(seen.loss)
        self.state = with_learners(self.state, learners)
        return torch.stack(losses).cpu().numpy()

    def validate(self) -> ValidationResult:
        """Accuracy and effects."""
        engine = self.engine
        return _scores(evaluate(engine.backend, engine.hypers, self.state, self.table, self.plan, engine.data))

    def norms(self) -> Array:
        """Of the parameters of hosts and seeds."""
        norms = np.zeros((len(self.wait), 1 + len(self.engine.structure.slots)))
        norms[:, 0] = self.state.host.params.cpu().double().norm(dim=1).numpy()
        for number, slot in enumerate(self.engine.structure.slots):
            for kind, rows in self.table.kinds(number, self.table.within(ACTIVE)[:, number].nonzero()[0]):
                own = self.state.seeds.params.cpu()[torch.as_tensor(rows), slot.blueprint_columns(kind)]
                norms[rows, 1 + number] = own.double().norm(dim=1).numpy()
        return norms

    def step(self) -> StepResult:
        """One environment step; the action is to wait."""
        self.state, event = self.engine.step(self.state, self.wait)
        return StepResult(event.epoch.loss.cpu().numpy(), _scores(event.evaluation))


def _scores(evaluation: Evaluation) -> ValidationResult:
    return ValidationResult(evaluation.accuracy.cpu().numpy(), evaluation.effect.cpu().numpy())


def prepare(workload: Workload, backend: str = "auto", device: str = "cpu") -> Contender:
    """Build the engine and draw the state anew."""
    own = EsperStep(workload, backend, device)
    return Contender(own.reset, own.train, own.validate, own.norms, own.step)
