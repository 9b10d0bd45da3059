"""PPO made of TorchRL's own parts, on EsperEnv as on any other environment."""

import torch
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.modules import MLP, MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import esper
from esper.simic.environment import EsperEnv


def build(env):
    """An actor and a critic, each a plain network of the observation."""
    sizes = {"in_features": env.observation_spec["observation"].shape[-1], "num_cells": [64, 64]}
    actor = ProbabilisticActor(
        TensorDictModule(MLP(out_features=env.action_spec.n, **sizes), ["observation"], ["logits"]),
        in_keys={"logits": "logits", "mask": "action_mask"},
        distribution_class=MaskedCategorical,
        return_log_prob=True,
    )
    return actor, ValueOperator(MLP(out_features=1, **sizes), in_keys=["observation"])


def train(env, actor, critic, batches=16, epochs=4, minibatches=4, lr=1e-3):
    """Learn from whole episodes, one per environment and batch; return the mean return of every batch."""
    frames = env.batch_size.numel() * env.engine.config.horizon
    collector = Collector(
        env, actor, frames_per_batch=frames, total_frames=frames * batches, auto_register_policy_transforms=False
    )
    estimate = GAE(gamma=0.99, lmbda=0.95, value_network=critic, vectorized=True)
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr)
    returns = []
    for batch in collector:
        returns.append(batch["next", "reward"].sum(1).mean().item())
        for _ in range(epochs):
            with torch.no_grad():
                data = estimate(batch).reshape(-1)
            for rows in torch.randperm(frames).chunk(minibatches):
                out = loss(data[rows])
                optimizer.zero_grad()
                (out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]).backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
    collector.shutdown()
    return returns


if __name__ == "__main__":
    torch.manual_seed(0)
    environment = EsperEnv(esper.make("digits_v1", num_envs=32))
    print(train(environment, *build(environment)))  # noqa: T201
