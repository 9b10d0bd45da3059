"""EsperEnv is an ordinary environment: a stock TorchRL script that knows nothing of our learner learns on it."""

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch

import esper
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_SMALL, DEPTHWISE
from esper.leyline.stages import MERGED, is_in
from esper.simic.environment import EsperEnv
from esper.tolaria.synthetic import synthetic

ALLOWED = {"esper", "esper.simic.environment", "esper.simic.rewards"}

_spec = importlib.util.spec_from_file_location("stock_ppo", Path(__file__).with_name("stock_ppo.py"))
stock_ppo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stock_ppo)


def test_the_script_is_short_and_knows_the_environment_alone():
    source = inspect.getsource(stock_ppo)
    assert len(source.splitlines()) <= 60
    nodes = list(ast.walk(ast.parse(source)))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    drawn = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name for name in [*plain, *drawn] if name.partition(".")[0] in ("esper", "")} <= ALLOWED


@pytest.fixture(scope="module")
def engine():
    """A host too narrow for eight classes, one slot, and a seed that would help it: growing pays."""
    dataset = synthetic((1, 4, 4), num_classes=8, num_train=64, num_val=40, noise=0.5)
    host = cnn_host((1, 4, 4), 8, num_blocks=1, base_channels=2, pool_blocks=0)
    settings = {
        "slots": (0,),
        "batch_size": 8,
        "steps_per_epoch": 2,
        "horizon": 8,
        "host_lr": 0.3,
        "seed_lr": 0.3,
        "min_training_epochs": 1,
        "min_blending_epochs": 1,
        "blend_epochs": 1,
        "min_gradient_ratio": 0.0,
        "min_improvement": -100.0,
        "min_contribution": -100.0,
    }
    task = esper.Task("narrow", host, (DEPTHWISE, CONV_SMALL), dataset, settings)
    return esper.make(task, 32)


def merged(step):
    """A reward that is easy to learn: a seed in the output is worth 1 a step."""
    return {"merged": is_in(step.after.slots.stage, MERGED).sum(1).to(step.after.slots.alpha.dtype)}


def run(engine, seed, batches):
    """The script on fresh environments: mean returns, the parameters before and after, and how often a rollout of the
    actor that came out asks for what is illegal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        env = EsperEnv(engine, merged)
        networks = torch.nn.ModuleList(stock_ppo.build(env))
        before = [parameter.detach().clone() for parameter in networks.parameters()]
        returns = stock_ppo.train(env, *networks, batches=batches)
        refused = env.rollout(engine.config.horizon, networks[0])["next", "refused"].sum()
    return returns, before, [parameter.detach() for parameter in networks.parameters()], refused.item()


def test_the_script_learns(engine):
    """Without learning, the mean return of four batches stays at 1."""
    returns, before, after, refused = run(engine, seed=2, batches=16)
    assert len(returns) == 16 and refused == 0
    assert sum(returns[-4:]) / 4 > 4
    for old, new in zip(before, after, strict=True):
        assert torch.isfinite(new).all() and not torch.equal(old, new)


def test_the_script_repeats_itself(engine):
    first, again = (run(engine, seed=4, batches=2) for _ in range(2))
    assert first[0] == again[0]
    assert all(torch.equal(one, two) for one, two in zip(first[2], again[2], strict=True))
