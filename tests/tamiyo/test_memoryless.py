"""The small policy without memory: what it computes, in NumPy, and that it plays where the recurrent one does."""

import numpy as np
import torch
from tensordict import TensorDict

import esper
from esper.runtime.interrupt import torch_draws_from
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.memoryless import build_memoryless
from esper.utils import rng

SIZES = ActorCriticConfig(16, 8, 16, value_scale=2.0)


def test_it_equals_a_rendering_in_numpy(small_task):
    engine = esper.make(small_task, 6, horizon=5)
    policy = build_memoryless(SIZES, engine.codec, len(engine.columns), seed=3)
    seen, mask = rng.normal(rng.key(1), (6, len(engine.columns))), engine.mask(engine.init(2))
    memory = {f"recurrent_state_{name}": torch.zeros(6, 1, 8) for name in "hc"}
    given = {"observation": seen, "action_mask": mask, "is_init": torch.ones(6, 1, dtype=torch.bool), **memory}
    with torch_draws_from(1, torch.device("cpu")):
        out = policy(TensorDict(given, [6]))
    weights = {name: value.double().numpy() for name, value in policy.state_dict().items()}
    layers = [(value, weights[name.replace("weight", "bias")]) for name, value in weights.items() if "weight" in name]
    hidden = seen.double().numpy()
    for weight, bias in layers[:2]:
        hidden = np.maximum(hidden @ weight.T + bias, 0)
    assert [len(bias) for _, bias in layers] == [64, 32, engine.codec.size, 16, 1]
    scores = np.where(mask.numpy(), hidden @ layers[2][0].T + layers[2][1], -np.inf)
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    legal = mask.numpy()
    np.testing.assert_allclose(out["logits"].detach().numpy()[legal], log_p[legal], atol=1e-5)
    value = np.maximum(hidden @ layers[3][0].T + layers[3][1], 0) @ layers[4][0].T + layers[4][1]
    np.testing.assert_allclose(out["state_value"].detach().numpy(), 2.0 * value, atol=1e-5)


def test_ppo_learns_with_it(small_task):
    env = EsperEnv(esper.make(small_task, 6, horizon=5))
    policy = build_memoryless(SIZES, env.engine.codec, len(env.engine.columns), seed=3)
    collector = make_collector(env, policy)
    with torch_draws_from(5, torch.device("cpu")):
        batch = next(iter(collector))
    collector.shutdown()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    Learner(policy, PPOConfig(epochs=1), rounds=1).update([batch])
    assert any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())
