"""Rollouts: one episode of every environment under any policy, and what came of it."""

import time
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina.structure import seed_sizes
from esper.leyline.state import State, validated
from esper.nissa.accounts import record_account
from esper.nissa.actions import counts
from esper.nissa.seeds import REMOVED, Fate, Lives, lives
from esper.nissa.trace import Trace, record, record_diagnostics, stack
from esper.simic.rewards import DEFAULT_REWARD, OwnReward, RewardMode, RewardParams, build_reward_params, reward
from esper.simic.utility import own_price, utility
from esper.tamiyo.policies import Policy, PolicyInput
from esper.tolaria.evaluation import bits, perplexity
from esper.utils import rng

ROLLOUT_STREAM = 0x91A7
"""Folded into the episode's seed for the policies' own draws."""


class Outcome(NamedTuple):
    """One episode of every environment under one policy; [E] each unless said."""

    policy: str
    test_accuracy: Tensor  # pp; of the network at the end, on samples that nothing else reads
    utility: Tensor  # J, pp; test accuracy less the price of the parameters added, see ``esper.simic.utility``
    price: Tensor  # pp per e-fold of parameters, each environment's own
    val_accuracy: Tensor  # pp; last validation accuracy, which the last reward was made of; NaN where there was none
    test_loss: Tensor  # nats; of the network at the end
    test_bits: Tensor  # the same in bits per prediction
    val_bits: Tensor  # last validation loss, bits per prediction; likewise
    test_perplexity: Tensor  # the test loss as a number of equally likely outcomes
    total_reward: Tensor  # undiscounted return
    added: Tensor  # parameters in seeds at the end
    germinated: Tensor  # seeds germinated, by GERMINATE or CHANGE_BLUEPRINT
    fossilized: Tensor  # permanent seeds at the end
    culled: Tensor  # seeds removed, by whomever
    rollbacks: Tensor
    refused: Tensor  # illegal actions
    operations: Tensor  # int64 [T, 6]; how often each operation was carried out, by decision
    seconds: float
    trace: Trace  # every decision
    seeds: Lives  # every seed
    memory: Any = None  # the policy's, after the last decision


@torch.no_grad()
def rollout(
    engine: Engine,
    policy: Policy,
    seed: int,
    mode: RewardMode | OwnReward = DEFAULT_REWARD,
    params: RewardParams | None = None,
    progress: TextIO | None = None,
    numbers: Tensor | None = None,
) -> tuple[State, Outcome]:
    """Run one episode in every environment.

    Args:
      engine: what is decided on.
      policy: what decides.
      seed: of the environments and of the policy's draws; equal seeds give paired episodes.
      mode, params: the reward that is summed up.
      progress: where a line per five epochs goes, if anywhere.
      numbers: int64 [E]; which environments these are, see ``Engine.init``; None: 0 to E - 1.

    Returns:
      the final state and the outcome. The test part is read once, after the last decision.
    """
    start, config = time.perf_counter(), engine.config
    params = build_reward_params({}, config, engine.data.train.inputs.device) if params is None else params
    numbers = torch.arange(config.num_envs) if numbers is None else numbers.cpu()
    state, memory = engine.init(seed, numbers), policy.init(config.num_envs)
    keys = rng.fold_in(rng.fold_in(rng.key(seed), ROLLOUT_STREAM), numbers).to(state.key.device)
    frames, diagnostics, accounts, names = [], [], [], tuple[str, ...]()
    for number in range(config.horizon):
        memory, decision = policy.act(memory, policy_input(engine, state, rng.fold_in(keys, number)))
        before = state
        state, event = engine.step(state, decision.action)
        earned = reward(mode, params, engine.structure, before, state, event)
        frames.append(record(engine.codec, state, event, earned.terms, earned.total))
        names = tuple(earned.terms)
        if decision.diagnostics is not None:
            diagnostics.append(record_diagnostics(decision.action, *decision.diagnostics))
        if decision.account is not None:
            accounts.append(record_account(decision.action, *decision.account))
        if progress is not None and ((number + 1) % 5 == 0 or number + 1 == config.horizon):
            accuracy, elapsed = float(validated(state.signals)[0].nanmean()), time.perf_counter() - start
            line = f"  epoch {number + 1:3d}/{config.horizon}  validation {accuracy:5.1f} %  {elapsed:5.0f} s\n"
            progress.write(line)
            progress.flush()
    trace = stack(frames, names, diagnostics, accounts)
    seconds = time.perf_counter() - start
    return state, _outcome(engine, policy.name, state, trace, params.price, seconds)._replace(memory=memory)


def policy_input(engine: Engine, state: State, keys: Tensor) -> PolicyInput:
    """What a policy sees; keys [E, 2] for its draws."""
    return PolicyInput(state, engine.observe(state), engine.mask(state), keys)


def _outcome(engine: Engine, name: str, state: State, trace: Trace, price: Tensor, seconds: float) -> Outcome:
    price = own_price(price, state)
    seeds, test, (val_accuracy, val_loss) = lives(trace), engine.test(state), validated(state.signals)
    added = seed_sizes(engine.structure, state.slots).sum(1)

    def per_env(which: Tensor) -> Tensor:
        return torch.bincount(seeds.env[which], minlength=engine.config.num_envs)

    return Outcome(
        policy=name,
        test_accuracy=test.accuracy.cpu(),
        utility=utility(test.accuracy, added, engine.structure.host.num_params, price).cpu(),
        price=price.cpu(),
        val_accuracy=val_accuracy.cpu(),
        test_loss=test.loss.cpu(),
        test_bits=bits(test.loss).cpu(),
        val_bits=bits(val_loss).cpu(),
        test_perplexity=perplexity(test.loss).cpu(),
        total_reward=trace.reward.double().sum(0),
        added=added.cpu(),
        germinated=per_env(seeds.born >= 0),
        fossilized=per_env(seeds.fate == int(Fate.FOSSILIZED)),
        culled=per_env(torch.isin(seeds.fate, torch.tensor(list(map(int, REMOVED))))),
        rollbacks=state.governor.rollbacks.cpu(),
        refused=(trace.refusal != 0).sum(0),
        operations=counts(trace),
        seconds=seconds,
        trace=trace,
        seeds=seeds,
    )
