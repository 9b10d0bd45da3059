"""The case of the learner: a whole round, episode and update."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase

from esper.bench import gates
from esper.bench.case import SEED, Bench, Case, Trial
from esper.runtime.interrupt import torch_draws_from
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic

WITHOUT_END = float("inf")
"""Target KL of an update that does all its epochs, so that every repeat does the same work."""

EPISODES = 5
"""Repeats at most of a case that plays whole episodes."""


class RoundSetup(NamedTuple):
    """A learner with the environment it learns from, and the state it starts every repeat in."""

    env: EsperEnv
    learner: Learner
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
        with torch_draws_from(SEED, self.env.device):
            return next(self.batches)

    def round(self) -> tuple[TensorDictBase, dict[str, float]]:
        """The episodes, and what the update reported."""
        self.restore()
        batch = self.collect()
        return batch, self.learner.update([batch])


def _round(bench: Bench, envs: int) -> Trial:
    engine = bench.engine(envs)
    env = EsperEnv(engine)
    policy = build_actor_critic(ActorCriticConfig(), engine.codec, len(engine.columns), SEED).to(bench.device)
    learner = Learner(policy, PPOConfig(target_kl=WITHOUT_END), rounds=1, seed=SEED)
    collector = make_collector(env, policy)
    starts = deepcopy(policy.state_dict()), deepcopy(learner.optimizer.state_dict())
    setup = RoundSetup(env, learner, iter(collector), *starts)
    return Trial(setup.round, engine, engine.init(SEED), setup, collector.shutdown)


def _round_gate(trial: Trial) -> str | None:
    batch, report = trial.run()
    return gates.batch_wrong(trial, batch) or _update_wrong(trial.extra, report)


def _update_wrong(setup: RoundSetup, report: dict[str, float]) -> str | None:
    """The update did what it was asked to, and moved the policy somewhere finite."""
    learner = setup.learner
    parameters = dict(learner.policy.named_parameters())
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters.values()):
        return "a parameter of the policy is not finite after the update"
    if all(torch.equal(parameter, setup.policy_start[name]) for name, parameter in parameters.items()):
        return "the update changed no parameter of the policy"
    if report["epochs"] != learner.config.epochs:
        return f"the update did {report['epochs']} epochs; expected {learner.config.epochs}"
    return None


ROUND = Case("round", "whole training round: episode and update", _round, _round_gate, most=EPISODES)
