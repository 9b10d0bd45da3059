"""Esper's own step."""

import numpy as np
import torch

from bench.contract import Contender, Outcome, Scores
from bench.deal import Deal, at_epoch, build_engine, deal_state
from bench.loop import matrix_product
from bench.workload import Array, Workload
from esper.kasmina import arena
from esper.kasmina.plan import make_plan
from esper.leyline.events import Evaluation
from esper.tolaria import optim
from esper.tolaria.evaluation import evaluate
from esper.tolaria.training import compute_gradients, gather, next_batch, sample_indices, scatter, train_step


class EsperStep:
    """An engine and a state. A step is ``engine.step``, all of it: life cycle, governor and signals included."""

    def __init__(self, workload: Workload, compile: bool) -> None:
        structure = workload.structure
        share = float((workload.kind >= 0).mean()) if workload.kind.size else 0.0
        deal = Deal(structure.name, workload.num_envs, structure.precision, structure.shared, share, structure.seed)
        sizes = {"steps_per_epoch": workload.steps, "batch_size": workload.indices.shape[3]}
        self.engine = build_engine(deal, compile, **sizes)
        self.start = deal_state(self.engine, deal)
        if not np.array_equal(self.start.host.params.numpy(), workload.host):
            raise ValueError("esper: the deal is not the workload's; expected the same initial hosts")
        self.wait = torch.zeros(workload.num_envs, dtype=torch.int64)
        self.state = self.start

    def reset(self) -> None:
        """The state as dealt."""
        self.state = self.start

    def train(self, epoch: int) -> Array:
        """The loop of ``train_epoch``, keeping the loss of every SGD step."""
        network, hypers, config = self.engine.network, self.engine.hypers, self.engine.config
        plan = make_plan(network, self.state.slots)
        work = gather(network, self.state, plan)
        alphas = [self.state.slots.alpha[:, slot][rows.lanes] for slot, rows in enumerate(plan.slots)]
        indices = sample_indices(config, at_epoch(self.state, epoch), len(self.engine.data.train_targets))
        losses = []
        for step in range(config.steps_per_epoch):
            batch = next_batch(network, self.state, self.engine.data, indices, step)
            loss, _, buffers, grads = compute_gradients(network, plan, work, alphas, batch)
            factor = optim.schedule(hypers, self.state.epoch, step, config.steps_per_epoch, config.horizon)
            work = train_step(network, hypers, plan, work._replace(buffers=buffers), factor, grads)
            losses.append(loss)
        self.state = scatter(network, self.state, plan, work)
        return torch.stack(losses).numpy()

    def validate(self) -> Scores:
        """Accuracy and effects."""
        census = make_plan(self.engine.network, self.state.slots).census
        return _scores(evaluate(self.engine.network, self.engine.hypers, self.state, census, self.engine.data))

    def norms(self) -> Array:
        """Of the parameters of hosts and seeds."""
        network, slots = self.engine.network, self.state.slots
        norms = torch.zeros(slots.stage.shape[0], 1 + slots.stage.shape[1], dtype=torch.float64)
        norms[:, 0] = self.state.host.params.double().norm(dim=1)
        for slot, rows in enumerate(make_plan(network, slots).slots):
            for group in rows.groups:
                columns = arena.blueprint_columns(network, slot, group.blueprint)
                norms[group.rows, 1 + slot] = self.state.seeds.params[group.rows, columns].double().norm(dim=1)
        return norms.numpy()

    def step(self) -> Outcome:
        """One environment step; the action is to wait."""
        self.state, event = self.engine.step(self.state, self.wait)
        return Outcome(None, event.epoch.loss.numpy(), _scores(event.evaluation))


def _scores(evaluation: Evaluation) -> Scores:
    return Scores(evaluation.accuracy.numpy(), evaluation.effect.numpy())


def prepare(workload: Workload, compile: bool = True) -> Contender:
    """Build the engine and deal the state anew."""
    esper = EsperStep(workload, compile)
    return Contender(esper.reset, esper.train, esper.validate, esper.norms, esper.step, matrix_product())
