"""Where everything lives: what is not there is one line at the door, and the learner skips bad gradients anywhere."""

import copy

import pytest
import torch

import esper
from esper.__main__ import main
from esper.leyline.config import ConfigError
from esper.runtime.build import devices, find_device
from esper.simic.adam import step_if
from esper.simic.ppo import Learner
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.interface import from_table, to_table, translate

COMMANDS = {
    "train": ("--num-envs", "2", "--dry-run", "true"),
    "evaluate": ("--num-envs", "6"),
    "inspect": (),
    "export": ("--to", "net.pt2"),
    "demo": ("--num-envs", "6"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No run of the working directory's is in the way."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("device", ["cuda:63", "nowhere", "meta"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there_is_one_line(capsys, command, device):
    assert main([command, "--device", device, *COMMANDS[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"esper {command}: --device = {device!r}: ") and line.endswith(", ".join(devices()))


def test_auto_is_a_device_that_is_here(small_task):
    found = find_device("auto")
    assert found.type in {name.partition(":")[0] for name in devices()}
    engine = esper.make(small_task, 2, "auto", "eager")
    assert engine.data.train.inputs.device.type == engine.codec.op.device.type == found.type
    with pytest.raises(ConfigError, match="device = 'nowhere'"):
        esper.make(small_task, 2, "nowhere")


def test_device_is_no_number_of_the_engine(capsys):
    assert main(["demo", "--num-envs", "6", "--device", "cpu", "--blueprint", "none"]) == 2
    assert main(["train", "--engine", "device=cuda", "--dry-run", "true"]) == 2
    assert "--engine: device: is a setting of its own (--device)" in capsys.readouterr().err


def test_an_interface_moves_as_a_whole(small_task):
    own = esper.make(small_task, 2, backend="eager").interface
    there = own.to(torch.device("meta"))
    assert {getattr(there.codec, name).device.type for name in ("op", "slot", "blueprint", "blend")} == {"meta"}
    assert to_table(there) == to_table(own)
    assert {part.device.type for part in translate(from_table(to_table(own)), there)} == {"meta"}


def test_a_fused_optimizer_skips_what_is_not_finite_as_the_plain_one_does(small_task):
    """On a GPU nobody looks at the flag but the optimizer itself."""
    engine = esper.make(small_task, 2, backend="eager")
    policy = build_actor_critic(ActorCriticConfig(8, 8, 8), engine.codec, len(engine.columns), 0)
    plain = Learner(policy, PPOConfig(), 1)
    fused = Learner(copy.deepcopy(policy), PPOConfig(), 1)
    fused.optimizer = torch.optim.Adam(fused.policy.parameters(), lr=plain.config.lr, eps=1e-5, fused=True)
    for scale in (1.0, torch.nan, -2.0):
        for learner in (plain, fused):
            for number, parameter in enumerate(learner.policy.parameters()):
                parameter.grad = torch.full_like(parameter, scale * (1 + number))
            before = [parameter.clone() for parameter in learner.policy.parameters()]
            step_if(learner.optimizer, torch.isfinite(torch.tensor(scale)))
            same = [torch.equal(*pair) for pair in zip(before, learner.policy.parameters(), strict=True)]
            assert same == [scale != scale] * len(same)
    for left, right in zip(plain.policy.parameters(), fused.policy.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
    states = [state for learner in (plain, fused) for state in learner.optimizer.state.values()]
    assert {float(state["step"]) for state in states} == {2.0}
