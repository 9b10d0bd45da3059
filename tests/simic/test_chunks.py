"""Updates in chunks of time: whose gradients they are, and what they keep."""

import copy

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import LSTMModule

import esper
from esper.simic.advantages import prepare, values_of
from esper.simic.chunks import LOSSES, REMEMBERED, Chunking, descend
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.utils import rng

T = 12


@pytest.fixture(scope="module")
def rollout(small_task):
    engine = esper.make(small_task, 4, backend="eager", horizon=T)
    policy = build_actor_critic(ActorCriticConfig(8, 8, 8), engine.codec, len(engine.columns), 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return policy, next(iter(make_collector(EsperEnv(engine), policy)))


def double(policy, batch, chunk=0):
    data = prepare(policy, PPOConfig(sequence_chunk=chunk), batch).data
    return copy.deepcopy(policy).double(), data.apply(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)


def gradient(policy, data, chunking) -> tuple[Tensor, dict[str, Tensor]]:
    learner = Learner(policy, PPOConfig(), 2)
    learner.optimizer.zero_grad()
    told = descend([data], [learner.loss], chunking, data.numel())
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]), told


def test_a_chunk_of_the_horizon_is_no_chunk_to_the_bit(rollout):
    ends = []
    for chunk in (0, T, T + 5):
        policy = copy.deepcopy(rollout[0])
        learner = Learner(policy, PPOConfig(sequence_chunk=chunk, target_kl=float("inf")), 2)
        told = learner.update([rollout[1].clone()])
        ends.append((told, [parameter.detach().clone() for parameter in policy.parameters()]))
    for told, parameters in ends[1:]:
        assert told == ends[0][0]
        assert all(map(torch.equal, parameters, ends[0][1]))


@pytest.mark.parametrize("length", [1, 5, 6])
def test_chunks_that_run_twice_have_the_gradient_of_the_whole(rollout, length):
    policy, data = double(*rollout)
    (whole, told), (exact, same) = (gradient(policy, data, Chunking(n, n > 0)) for n in (0, length))
    torch.testing.assert_close(exact, whole, rtol=1e-9, atol=1e-14)
    for name in LOSSES:
        assert float(same[name]) == pytest.approx(float(told[name]), abs=1e-12)
    truncated, same = gradient(policy, data, Chunking(length))
    assert float((truncated - whole).abs().max()) > 1e-4 * float(whole.abs().max()), "something was cut"
    for name in LOSSES:  # values do not depend on how far gradients reach
        assert float(same[name]) == pytest.approx(float(told[name]), abs=1e-12)


class Squares(nn.Module):
    """A loss whose only part is the mean of squares of what an LSTM gives."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        outs = ["y", *(("next", state) for state in REMEMBERED)]
        self.actor_network = LSTMModule(lstm=lstm, in_keys=["x", *REMEMBERED], out_keys=outs)

    def forward(self, given: TensorDict) -> TensorDict:
        found = self.actor_network(given)["y"].square().mean()
        return TensorDict({"loss_objective": found, "loss_critic": 0 * found, "loss_entropy": 0 * found})


def test_truncated_gradients_are_those_of_a_memory_that_is_given_anew(monkeypatch):
    """Beside ``torch.nn.LSTM``, one step after the other, whose memory is detached where a chunk begins."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        lstm = nn.LSTM(3, 4, batch_first=True).double()
    x, zero = rng.normal(rng.key(2), (5, 7, 3), torch.float64), torch.zeros(5, 7, 1, 4, dtype=torch.float64)
    data = TensorDict({"x": x, **dict.fromkeys(REMEMBERED, zero), "action_log_prob": x[..., 0]}, batch_size=[5, 7])
    descend([data], [Squares(lstm)], Chunking(3), data.numel())
    found = [parameter.grad.clone() for parameter in lstm.parameters()]
    memory, total = (zero[:, 0].mT.reshape(1, 5, 4),) * 2, torch.zeros((), dtype=torch.float64)
    for step in range(7):
        memory = tuple(part.detach() for part in memory) if step % 3 == 0 else memory
        y, memory = lstm(x[:, step : step + 1], memory)
        total = total + y.square().sum() / (5 * 7 * 4)
    for mine, other in zip(found, torch.autograd.grad(total, list(lstm.parameters())), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("length", [1, 5, T])
def test_values_do_not_depend_on_chunks(rollout, length):
    torch.testing.assert_close(values_of(*rollout, length), values_of(*rollout), rtol=1e-5, atol=1e-5)


class Live:
    """Bytes of tensors that graphs hold at once, at most so far."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> "Held":
        return Held(self, tensor)


class Held:
    """One of them."""

    def __init__(self, live: Live, tensor: Tensor) -> None:
        self.live, self.tensor = live, tensor
        live.now += tensor.nbytes
        live.most = max(live.most, live.now)

    def __del__(self) -> None:
        self.live.now -= self.tensor.nbytes


def kept_of(policy, data, chunking) -> int:
    live = Live()
    with torch.autograd.graph.saved_tensors_hooks(live.pack, lambda held: held.tensor):
        gradient(policy, data, chunking)
    return live.most


def test_five_hundred_decisions_keep_what_fifty_do(rollout):
    policy, data = double(*rollout)
    short, long = (torch.cat([data] * 42, 1)[:, :steps] for steps in (50, 500))
    fifty = kept_of(policy, short, Chunking())
    assert kept_of(policy, long, Chunking(50)) <= 1.1 * fifty
    assert kept_of(policy, long, Chunking()) >= 8 * fifty, "unchunked, memory grows with the horizon"
