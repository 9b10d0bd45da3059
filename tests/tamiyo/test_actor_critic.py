"""The learned policy through TorchRL's own collector, advantage estimator and loss."""

import warnings

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, ExplorationType, InitTracker, TransformedEnv, set_exploration_type
from torchrl.modules import MaskedCategorical, set_recurrent_mode
from torchrl.modules.utils import get_primers_from_module
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import esper
from esper.leyline.actions import Blend, build_codec
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic, initialise, orthogonal
from esper.utils import rng

with warnings.catch_warnings():  # torchrl 0.14.1 warns of its own classes while it is imported
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrl.collectors import Collector

CODEC = build_codec(((0, 1), (0, 1, 2)), (Blend.LINEAR, Blend.SIGMOID), ("a", "b", "c"))
SIZES = ActorCriticConfig(features=12, lstm=8, head=10)
ENVS, COLUMNS, STEPS = 4, 5, 11


class Metronome(EnvBase):
    """Observations are waves of the time; every third action is legal, and WAIT; row i runs for 3 + i steps."""

    def __init__(self):
        super().__init__(batch_size=[ENVS], device="cpu")
        self.observation_spec = Composite(
            observation=Unbounded((ENVS, COLUMNS)),
            action_mask=Binary(shape=(ENVS, CODEC.size), dtype=torch.bool),
            shape=(ENVS,),
        )
        self.action_spec = Categorical(CODEC.size, shape=(ENVS,), dtype=torch.int64)
        self.reward_spec = Unbounded((ENVS, 1))
        flag = Categorical(2, shape=(ENVS, 1), dtype=torch.bool)
        self.full_done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=(ENVS,))
        self.time = torch.zeros(ENVS, dtype=torch.int64)
        self.illegal = 0

    def _look(self, **more):
        wave = torch.sin(torch.arange(1.0, ENVS * COLUMNS + 1).reshape(ENVS, COLUMNS) * (1 + self.time.unsqueeze(1)))
        mask = (torch.arange(CODEC.size) + self.time.unsqueeze(1)) % 3 == 0
        mask[:, 0] = True
        return TensorDict({"observation": wave, "action_mask": mask, **more}, [ENVS])

    def _reset(self, tensordict=None):
        every = torch.ones(ENVS, dtype=torch.bool)
        rows = every if tensordict is None else tensordict.get("_reset", every.unsqueeze(1)).squeeze(1)
        self.time = torch.where(rows, 0, self.time)
        return self._look()

    def _step(self, tensordict):
        action = tensordict["action"]
        self.illegal += int((~tensordict["action_mask"].gather(1, action.unsqueeze(1))).sum())
        self.time = self.time + 1
        end = (self.time >= 3 + torch.arange(ENVS)).unsqueeze(1)
        flags = {"done": end, "truncated": end, "terminated": torch.zeros_like(end)}
        return self._look(reward=(action % 3).float().unsqueeze(1), **flags)

    def _set_seed(self, seed):
        return seed


def inputs(rows, seed=0, columns=COLUMNS, codec=CODEC):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, codec.size, generator=generator) < 0.4
    mask[:, 0] = True
    states = {f"recurrent_state_{name}": torch.zeros(rows, 1, SIZES.lstm) for name in "hc"}
    observation = torch.randn(rows, columns, generator=generator)
    first = torch.ones(rows, 1, dtype=torch.bool)
    return TensorDict({"observation": observation, "action_mask": mask, "is_init": first, **states}, [rows])


def collect(policy, batches=1):
    env = TransformedEnv(Metronome(), Compose(InitTracker(), get_primers_from_module(policy)))
    collector = Collector(
        env,
        policy.get_policy_operator(),
        frames_per_batch=ENVS * STEPS,
        total_frames=ENVS * STEPS * batches,
        auto_register_policy_transforms=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = [batch.clone() for batch in collector]
    collector.shutdown()
    assert env.base_env.illegal == 0
    return data


def test_keys_and_types():
    policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed=0)
    data = inputs(6)
    with torch.random.fork_rng(devices=[]):
        policy(data)
    assert data["action"].dtype == torch.int64 and data["action"].shape == (6,)
    assert data["logits"].shape == (6, CODEC.size) and data["state_value"].shape == (6, 1)
    assert data["next", "recurrent_state_h"].shape == (6, 1, SIZES.lstm)
    assert policy.get_policy_operator().log_prob_keys == ["action_log_prob"]
    chosen = data["logits"].gather(1, data["action"].unsqueeze(1)).squeeze(1)
    assert torch.allclose(data["action_log_prob"], chosen, atol=1e-6)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(policy(inputs(6))["action"], data["logits"].argmax(1))


def test_collector_advantage_and_loss():
    policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed=1)
    actor = policy.get_policy_operator()
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=policy.get_value_operator(), deactivate_vmap=True, vectorized=True)
    loss = ClipPPOLoss(actor, policy.get_value_head(), entropy_coeff=0.01, critic_coeff=0.5)
    for data in collect(policy, batches=2):
        assert data.shape == (ENVS, STEPS) and data["is_init"][:, 1:].any(), "episodes end within the rollout"
        assert not any(key.startswith("_") for key in list(data.keys()))
        with set_recurrent_mode(True):
            with torch.no_grad():
                again = actor.get_dist(data.clone()).log_prob(data["action"])
                gae(data)
            losses = loss(data)
            total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            total.backward()
        assert torch.allclose(again, data["action_log_prob"], atol=1e-5)
        assert losses["max_ratio"].item() == pytest.approx(1.0, abs=1e-5)
        for name, parameter in policy.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        policy.zero_grad()


def test_values_of_the_rollout_are_those_of_single_steps():
    policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed=2)
    critic = policy.get_value_operator()
    data = collect(policy, batches=2)[1]
    expected = critic(data.select(*critic.in_keys).reshape(-1))["state_value"].reshape(ENVS, STEPS, 1)
    after = critic(data["next"].select(*critic.in_keys).reshape(-1))["state_value"].reshape(ENVS, STEPS, 1)
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic, deactivate_vmap=True, vectorized=True)
    with set_recurrent_mode(True), torch.no_grad():
        gae(data)
    assert torch.allclose(data["state_value"], expected, atol=1e-5)
    assert torch.allclose(data["next", "state_value"], after, atol=1e-5), "truncation bootstraps from the successor"


def test_the_loss_runs_the_trunk_once():
    policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed=3)
    (data,) = collect(policy)
    data.update({"advantage": torch.ones(ENVS, STEPS, 1), "value_target": torch.ones(ENVS, STEPS, 1)})
    calls = []
    policy.module[0].module[0].module.register_forward_hook(lambda *_: calls.append(1))
    with set_recurrent_mode(True):
        ClipPPOLoss(policy.get_policy_operator(), policy.get_value_head())(data)
    assert len(calls) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_broken_observation_stays_in_its_row(bad):
    policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed=4)
    with torch.random.fork_rng(devices=[]):
        good = policy(inputs(5))
        data = inputs(5)
        data["observation"][2] = bad
        broken = policy(data)
    rows = torch.tensor([0, 1, 3, 4])
    for key in ("logits", "state_value", ("next", "recurrent_state_h"), ("next", "recurrent_state_c")):
        assert broken[key].isfinite().all()
        assert torch.equal(broken[key][rows], good[key][rows])
    assert broken["action_mask"].gather(1, broken["action"].unsqueeze(1)).all()


def test_a_float64_observation_is_taken():
    policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed=4)
    data = inputs(3)
    data["observation"] = data["observation"].double()
    with torch.random.fork_rng(devices=[]):
        assert policy(data)["logits"].dtype == torch.float32


def test_parameters_are_a_function_of_the_seed():
    def parameters(seed, global_seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            before = torch.get_rng_state()
            policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed)
            assert torch.equal(before, torch.get_rng_state())
        return dict(policy.named_parameters())

    first, second, third = parameters(5, 0), parameters(5, 1), parameters(6, 0)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], third[name]) for name in first if first[name].dim() == 2)


def test_initial_values():
    policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed=7)
    weights = [(name, p.double()) for name, p in policy.named_parameters() if p.dim() == 2]
    for name, weight in weights:
        gain = 2.0**0.5
        if "lstm" in name:
            gain = 1.0
        elif name.endswith(".2.weight"):
            gain = 1.0 if name.startswith("module.2") else 0.01
        flat = weight if weight.shape[0] <= weight.shape[1] else weight.T
        expected = gain**2 * torch.eye(flat.shape[0], dtype=torch.float64)
        assert torch.allclose(flat @ flat.T, expected, atol=1e-6), name
    lstm = policy.module[0].module[1].lstm
    forget = torch.zeros(4, SIZES.lstm)
    forget[1] = 1.0
    assert torch.equal((lstm.bias_ih_l0 + lstm.bias_hh_l0).reshape(4, -1), forget)
    biases = [p for n, p in policy.named_parameters() if n.endswith("bias") and "lstm" not in n]
    assert len(biases) == 13 and all((bias == 0).all() for bias in biases)


def test_orthogonal_matrices_are_uniform_in_sign():
    matrices = torch.stack([orthogonal(rng.key(seed), 3, 3) for seed in range(400)])
    assert torch.allclose(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert matrices.mean(0).abs().max() < 0.12, "mean 0, standard error 0.029"


def test_the_first_policy_is_fair_to_ops(small_task):
    engine = esper.make(small_task, num_envs=2)
    policy = build_actor_critic(ActorCriticConfig(lstm=SIZES.lstm), engine.codec, 7, seed=0)
    data = inputs(200, columns=7, codec=engine.codec)
    data["recurrent_state_h"].normal_(generator=torch.Generator().manual_seed(0))
    data["action_mask"][0, 1:] = False
    with torch.random.fork_rng(devices=[]):
        probability = policy(data)["logits"].exp()
    mass = torch.zeros(200, len(engine.codec.ops)).index_add(1, engine.codec.op, probability)
    legal = torch.zeros(200, len(engine.codec.ops)).index_add(1, engine.codec.op, data["action_mask"].float()) > 0
    fair = legal / legal.sum(1, keepdim=True)
    assert (mass - fair).abs().max() < 0.02


def test_a_million_decisions_are_legal():
    policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed=8)
    data = inputs(5000)
    data["action_mask"][::7, 1:] = False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        logits = policy(data)["logits"]
        distribution = MaskedCategorical(logits=logits, mask=data["action_mask"])
        for _ in range(10):
            action = distribution.sample((20,))
            assert data["action_mask"].expand(20, -1, -1).gather(2, action.unsqueeze(2)).all()


def test_a_codec_without_slots():
    codec = build_codec((), (Blend.LINEAR,), ("a",))
    policy = build_actor_critic(SIZES, codec, COLUMNS, seed=0)
    with torch.random.fork_rng(devices=[]):
        data = policy(inputs(3, codec=codec))
    assert (data["action"] == 0).all() and (data["logits"] == 0).all()


def test_the_codec_moves_with_the_heads():
    policy = build_actor_critic(SIZES, CODEC, COLUMNS, seed=0)
    columns = [buffer for name, buffer in policy.to("meta").named_buffers() if name.endswith("_column")]
    assert len(columns) == 5 and all(column.is_meta for column in columns)
    assert not any(name.endswith("_column") for name in policy.state_dict())


@pytest.mark.parametrize("field", ["features", "lstm", "head"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
def test_sizes_are_checked(field, value):
    with pytest.raises(ValueError, match=rf"policy\.{field} = .*expected an integer >= 1"):
        ActorCriticConfig(**{field: value})


def test_other_errors_are_one_line():
    with pytest.raises(ValueError, match="observation_size = 0"):
        build_actor_critic(SIZES, CODEC, 0, seed=0)
    with pytest.raises(ValueError, match="seed"):
        build_actor_critic(SIZES, CODEC, 3, seed=-1)
    with torch.random.fork_rng(devices=[]), pytest.raises(TypeError, match="Conv2d"):
        initialise(torch.nn.Conv2d(1, 1, 1), rng.key(0))
