"""A policy whose matrix products are in bfloat16: what it says, in which types, and that it learns."""

import copy

import pytest
import torch

import esper
from esper.leyline.config import Precision
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.amp import set_precision
from esper.tamiyo.interface import PolicyNetwork
from esper.tamiyo.networks import build_policies


@pytest.mark.parametrize("network", list(PolicyNetwork))
def test_it_says_nearly_the_same_in_float32(small_task, network):
    engine = esper.make(small_task, 4, backend="eager", horizon=4)
    sizes = ActorCriticConfig(16, 16, 16, precision=Precision.BF16)
    (policy,) = build_policies(network, sizes, [engine.interface], 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = next(iter(make_collector(EsperEnv(engine), policy)))
    plain = copy.deepcopy(policy)
    set_precision(plain, Precision.FLOAT32)
    assert list(plain.state_dict()) == list(policy.state_dict())
    operators = [each.get_policy_operator() for each in (policy, plain)]
    narrow, wide = (run(batch[:, 0].clone()) for run in operators)
    for name in ("logits", ("next", "recurrent_state_h"), ("next", "recurrent_state_c")):
        assert narrow[name].dtype == torch.float32
    legal = batch[:, 0]["action_mask"]
    torch.testing.assert_close(narrow["logits"][legal], wide["logits"][legal], rtol=2e-2, atol=2e-2)
    chances = torch.where(legal, narrow["logits"].double().exp(), 0.0).sum(-1)
    torch.testing.assert_close(chances, torch.ones_like(chances), rtol=1e-5, atol=1e-5)
    if network is not PolicyNetwork.MLP:
        assert not torch.equal(narrow["next", "recurrent_state_h"], wide["next", "recurrent_state_h"])
    learner = Learner(policy, PPOConfig(), rounds=2)
    told = learner.update([batch])
    assert told["skipped"] == 0 and told["gradient_norm"] > 0
    assert {value.dtype for value in policy.parameters()} == {torch.float32}
