"""Cases of the learner: collecting episodes, updating the policy, and both."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.modules import set_recurrent_mode

from esper.bench import gates
from esper.bench.case import SEED, Bench, Case, Trial
from esper.bench.work import NO_WORK, Work, matrix_cells, step_work
from esper.kasmina.layout import Layout, constant
from esper.kasmina.lifecycle import apply_action
from esper.kasmina.plan import take_census
from esper.runtime.interrupt import torch_draws_from
from esper.simic.environment import EsperEnv
from esper.simic.ppo import KEPT, Learner, PPOConfig, advantages, make_collector, values_of
from esper.tamiyo.policy import PolicyConfig, build_policy

WITHOUT_END = float("inf")
"""Target KL of an update that does all its epochs, so that every repeat does the same work."""

EPISODES = 5
"""Repeats at most of a case that plays whole episodes."""


class Counting(EsperEnv):
    """The environment, adding up the work of the steps it takes while ``tally`` is a ``Work``."""

    tally: Work | None = None

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self.tally is not None:
            slots, engine = self.state.slots, self.engine
            accuracy = self.state.signals.val_accuracy
            decided, _ = apply_action(engine.network, engine.hypers, slots, tensordict["action"], accuracy)
            self.tally = self.tally.plus(step_work(engine, take_census(decided)))
        return super()._step(tensordict)


class Player(NamedTuple):
    """A learner with the environment it learns from, and the state it starts every repeat in."""

    env: Counting
    learner: Learner
    collector: Collector
    batches: Iterator[TensorDictBase]
    policy_start: dict[str, Any]
    optimizer_start: dict[str, Any]

    def restore(self) -> None:
        """Forget what was learned."""
        self.learner.policy.load_state_dict(self.policy_start)
        self.learner.optimizer.load_state_dict(deepcopy(self.optimizer_start))
        self.learner.done = 0

    def collect(self) -> TensorDictBase:
        """The same episodes every time, as long as the policy is the same."""
        self.env.next_seed = SEED
        with torch_draws_from(SEED):
            return next(self.batches)


def _player(bench: Bench, envs: int, **overrides: Any) -> Player:
    engine = bench.engine(envs, **overrides)
    env = Counting(engine)
    policy = build_policy(PolicyConfig(), engine.codec, len(engine.columns), SEED).to(bench.device)
    learner = Learner(policy, PPOConfig(target_kl=WITHOUT_END), rounds=1, seed=SEED)
    collector = make_collector(env, policy)
    starts = deepcopy(policy.state_dict()), deepcopy(learner.optimizer.state_dict())
    return Player(env, learner, collector, iter(collector), *starts)


def _trial(player: Player, run: Callable[[], Any], extra: Any = None) -> Trial:
    state = player.env.engine.init(SEED)
    return Trial(run, player.env.engine, state, (player, extra), player.collector.shutdown)


def _rollout(bench: Bench, envs: int) -> Trial:
    player = _player(bench, envs)
    return _trial(player, player.collect)


def _update(bench: Bench, envs: int) -> Trial:
    """An update only looks at observations, so its episodes are played with as little training as there can be."""
    player = _player(bench, envs, steps_per_epoch=1)
    batch = player.collect().clone()

    def run() -> dict[str, float]:
        player.restore()
        return player.learner.update([batch])

    return _trial(player, run, batch)


def _round(bench: Bench, envs: int) -> Trial:
    player = _player(bench, envs)

    def run() -> tuple[TensorDictBase, dict[str, float]]:
        player.restore()
        batch = player.collect()
        return batch, player.learner.update([batch])

    return _trial(player, run)


def _update_wrong(player: Player, batch: TensorDictBase, report: dict[str, float]) -> str | None:
    """Losses against their definition on the policy's own actions; and the update moved the policy somewhere finite."""
    learner = player.learner
    parameters = dict(learner.policy.named_parameters())
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters.values()):
        return "a parameter of the policy is not finite after the update"
    if all(torch.equal(parameter, player.policy_start[name]) for name, parameter in parameters.items()):
        return "the update changed no parameter of the policy"
    if report["epochs"] != learner.config.epochs:
        return f"the update did {report['epochs']} epochs; expected {learner.config.epochs}"
    player.restore()
    after, values = batch["next"], values_of(learner.policy, batch)
    estimate = advantages(learner.config, values, after["reward"], after["done"], after["done"])
    with set_recurrent_mode(True), torch.no_grad():
        loss = learner.loss(batch.select(*KEPT).update(estimate))
    return gates.learner_wrong(loss, estimate["advantage"], values[:, :-1] - estimate["value_target"])


def _update_gate(trial: Trial) -> str | None:
    player, batch = trial.extra
    return _update_wrong(player, batch, trial.run())


def _round_gate(trial: Trial) -> str | None:
    batch, report = trial.run()
    return gates.batch_wrong(trial, batch) or _update_wrong(trial.extra[0], batch, report)


def _update_work(trial: Trial) -> Work:
    """Values along the episodes once; then forward and backward over all decisions, once per epoch.

    Every update of a minibatch moves parameters, gradients and Adam's moments.
    """
    player, config = trial.extra[0], trial.engine.config
    learner, sizes = player.learner, [tuple(p.shape) for p in player.learner.policy.parameters()]
    cells = matrix_cells(Layout(tuple(constant(str(i), shape, 0.0) for i, shape in enumerate(sizes))))
    epochs, decisions = learner.config.epochs, config.num_envs * config.horizon
    numbers = sum(p.numel() for p in learner.policy.parameters())
    rows = -(-config.num_envs // learner.config.minibatches)
    passes = 10 * numbers * epochs * -(-config.num_envs // rows)
    seen = (epochs + 1) * decisions * (len(trial.engine.columns) + trial.engine.codec.size)
    flops = 2 * cells * (3 * epochs * decisions + decisions + config.num_envs)
    return NO_WORK._replace(flops=flops, bytes=4 * (passes + seen))


def _rollout_work(trial: Trial) -> Work:
    """What the steps of one rollout cost, added up while it is played again."""
    player = trial.extra[0]
    player.restore()
    player.env.tally = NO_WORK
    player.collect()
    tally, player.env.tally = player.env.tally, None
    return tally


def _round_work(trial: Trial) -> Work:
    return _rollout_work(trial).plus(_update_work(trial))


CASES = (
    Case("rollout", "one episode of E environments, collected", _rollout, gates.rollout_gate, _rollout_work, EPISODES),
    Case("ppo-update", "PPO update from one episode of E environments", _update, _update_gate, _update_work),
    Case("round", "whole training round: episode and update", _round, _round_gate, _round_work, EPISODES),
)
