"""Strict determinism: an environment's trajectory is its own, whoever else is there, how many, and in what order."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

import esper
from esper.leyline.actions import Op
from esper.leyline.config import ConfigError, Determinism, Precision, SampleOrder
from esper.leyline.environments import select
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage
from esper.runtime import debug
from esper.runtime.policies import gradient_of
from esper.runtime.rollout import policy_input, rollout
from esper.runtime.scene import Rules, build_scene
from esper.simic.environment import EsperEnv
from esper.simic.ppo import make_collector
from esper.simic.rewards import RewardMode, build_reward_params, reward
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.policies import learned_policy
from esper.tamiyo.tiles import TILE, Tiled
from esper.tezzeret.batches import batch_at
from esper.tezzeret.native.library import library
from esper.tolaria.training import draw_batches
from esper.utils import rng
from esper.utils.fingerprint import link, row_fingerprints, tables_of

_spec = importlib.util.spec_from_file_location("strict_cases", Path(__file__).with_name("cases.py"))
cases = importlib.util.module_from_spec(_spec)
sys.modules["strict_cases"] = cases
_spec.loader.exec_module(cases)

SUBJECT, SEED, LENGTH = 3, 5, 12
ALONE, PAIR, SEVEN, SHUFFLED = (SUBJECT,), (6, SUBJECT), tuple(range(7)), (12, 40, 6, 2, SUBJECT, 55, 31)
MANY = tuple((37 * place + 11) % 64 for place in range(64))
"""All of 64, shuffled."""

WIDE = tuple((101 * place + 11) % 256 for place in range(256))
"""All of 256, shuffled."""

TASKS = ["conv", "token"] if library() is not None else []
BACKENDS = ["eager", *(["native"] if library() is not None else [])]
GROUPS = {"eager": (ALONE, PAIR), "native": (ALONE, SEVEN, MANY, SHUFFLED)}
LARGE = {"eager": (ALONE, SEVEN, MANY), "native": (ALONE, WIDE)}
SIZES = [pytest.param(GROUPS, id="few"), pytest.param(LARGE, id="many", marks=pytest.mark.large)]
POLICY = ActorCriticConfig(features=16, lstm=16, head=8)


@pytest.fixture(scope="module", autouse=True)
def unwatched():
    """That nothing is written into is looked at where the same functions run elsewhere; here it is half of the time."""
    with debug.watching(False):
        yield


@pytest.fixture(scope="module")
def tasks(small_task):
    return {"conv": small_task, "token": cases.token_task(small_task.settings)}


def strict(task, numbers, backend, **settings):
    return esper.make(task, len(numbers), backend=backend, deterministic="strict", **settings)


def chains(engine, numbers, length=LENGTH):
    """Along a random legal walk, every environment's chain of fingerprints, and the stages it went through."""
    state, links, stages = engine.init(SEED, torch.tensor(numbers)), [""] * len(numbers), set()
    params = build_reward_params({}, engine.config, torch.device("cpu"))
    for _ in range(length):
        action = cases.legal_by_keys(engine, state, state.key)
        after, event = engine.step(state, action)
        told = {"action": action, "observation": engine.observe(after), "mask": engine.mask(after)}
        told |= {
            mode.value: reward(mode, params, engine.structure, state, after, event).total
            for mode in (RewardMode.UTILITY, RewardMode.SHAPED)
        }
        told |= {f"event{path}": leaf for path, leaf in cases.leaves((event.epoch, event.evaluation))}
        links = [link(old, new) for old, new in zip(links, row_fingerprints(tables_of(after) | told), strict=True)]
        state, stages = after, stages | set(after.slots.stage[numbers.index(SUBJECT)].tolist())
    return dict(zip(numbers, links, strict=True)), stages


@pytest.mark.parametrize("groups", SIZES)
@pytest.mark.parametrize(("task", "backend"), [("conv", "eager"), *((task, "native") for task in TASKS)])
def test_a_trajectory_is_its_environments_own(tasks, task, backend, groups):
    """Through every stage; the chain of an environment is the same in every company, and no two are alike."""
    found = [chains(strict(tasks[task], group, backend), group) for group in groups[backend]]
    assert found[0][1] == set(map(int, Stage)) - {int(Stage.UNKNOWN), int(Stage.GERMINATED)}  # what a step may end in
    for group, (links, _) in zip(groups[backend], found, strict=True):
        assert links[SUBJECT] == found[0][0][SUBJECT], group
        assert len(set(links.values())) == len(group)
    one, other = found[1][0], found[-1][0]
    assert all(one[number] == other[number] for number in one.keys() & other.keys())


def policy_of(engine):
    policy = build_actor_critic(POLICY, engine.codec, len(engine.columns), seed=2)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(rng.uniform(rng.fold_in(rng.key(3), number), tuple(parameter.shape), -0.2, 0.2))
    return policy


@pytest.mark.parametrize("groups", SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_learned_policys_episode_is_its_environments_own(small_task, backend, groups):
    """Played by ``rollout``, and collected for the learner."""
    played, collected = [], []
    for group in groups[backend]:
        engine, numbers = strict(small_task, group, backend, horizon=4), torch.tensor(group)
        policy, place = policy_of(engine), group.index(SUBJECT)
        state, outcome = rollout(engine, learned_policy(policy, POLICY.lstm, strict=True), SEED, numbers=numbers)
        told = {"value": outcome.trace.diagnostics.value.T, "reward": outcome.trace.reward.T}
        played.append(row_fingerprints(tables_of(state) | told)[place])
        env = EsperEnv(engine, seed=SEED, numbers=numbers)
        collector = make_collector(env, policy)
        batch = next(iter(collector))
        collector.shutdown()
        kept = batch.select("observation", "action", "action_log_prob", "recurrent_state_h", ("next", "reward"))
        collected.append(row_fingerprints(tables_of(env.ended) | tables_of(kept))[place])
        assert batch["action_mask"].gather(2, batch["action"].unsqueeze(2)).all()
    assert len(set(played)) == 1 and len(set(collected)) == 1


def test_collecting_strictly_draws_from_the_policy_itself(small_task):
    """The log-probabilities kept are those of the ordinary actor, and the draws depend on the environments' keys."""
    engine = strict(small_task, range(5), "eager", horizon=3)
    policy = policy_of(engine)
    collectors = [make_collector(EsperEnv(engine, seed=seed), policy) for seed in (SEED, SEED, SEED + 1)]
    first, same, other = (next(iter(collector)) for collector in collectors)
    assert torch.equal(first["action"], same["action"]) and not torch.equal(first["action"], other["action"])
    keys = ("observation", "action_mask", "is_init", "recurrent_state_h", "recurrent_state_c")
    for step in range(3):
        chance = policy.get_policy_operator().get_dist(first[:, step].select(*keys)).log_prob(first["action"][:, step])
        torch.testing.assert_close(first["action_log_prob"][:, step], chance, rtol=1e-5, atol=1e-5)


@pytest.mark.large
@pytest.mark.parametrize(
    ("task", "count", "backend", "pairs"), [("digits", 64, "native", 5), ("synthetic", 8, "eager", 3)]
)
def test_what_strictness_costs(task, count, backend, pairs):
    """Processor time of collecting an episode of every environment, strictly and not, in turns."""
    levels, spent = list(Determinism), {level: [] for level in Determinism}
    for pair in range(-1, pairs):  # the first is for warmth
        for level in levels:
            engine = esper.make(task, count, backend=backend, deterministic=level)
            policy = build_actor_critic(ActorCriticConfig(), engine.codec, len(engine.columns), seed=2)
            collector = make_collector(EsperEnv(engine, seed=2 * pair + 2), policy)
            began = time.process_time()
            with torch.random.fork_rng(devices=[]):  # from which actions are drawn where nothing is strict
                next(iter(collector))
            spent[level].append(time.process_time() - began)
            collector.shutdown()
    ratios = [strictly / plainly for plainly, strictly in zip(*(spent[level][1:] for level in levels), strict=True)]
    mean = sum(ratios) / pairs
    print(f"{task}, {count}, {backend}: {mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")  # noqa: T201
    assert mean < (1.5 if backend == "native" else 2 * count)


@pytest.mark.skipif(library() is None, reason="needs the native library")
def test_more_threads_than_environments_change_nothing(small_task):
    torch.set_num_threads(2)
    try:
        found = [chains(strict(small_task, group, "native"), group, 6)[0][SUBJECT] for group in (ALONE, SEVEN)]
    finally:
        torch.set_num_threads(1)
    assert found[0] == found[1] == chains(strict(small_task, ALONE, "native"), ALONE, 6)[0][SUBJECT]


def assert_close(pairs):
    for (path, ours), (_, theirs) in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, p=path: f"{p}: {m}")


@pytest.mark.parametrize("order", SampleOrder)
def test_alone_is_the_definition(small_task, order):
    """One environment at a time gives what all at once give, up to rounding, counterfactuals in their order."""
    sweep = {"host_lr": torch.linspace(0.02, 0.08, 5), "alpha_target": torch.linspace(0.5, 1.0, 5)}
    settings = {"precision": Precision.FLOAT64, "sample_order": order, **sweep}
    plain = esper.make(small_task, 5, backend="eager", **settings)
    single = esper.make(small_task, 5, backend="eager", deterministic=Determinism.STRICT, **settings)
    assert single.describe()[0] == "eager, strictly: every environment by itself"
    for scene in cases.walk(plain, seed=3, length=7)[3::3]:
        given = scene._replace(backend=single.backend)
        for name in ("train_epoch", "evaluate", "measure", "shapley_values"):
            pairs = zip(cases.leaves(cases.CASES[name](given)), cases.leaves(cases.CASES[name](scene)), strict=True)
            assert_close(pairs)
        batch = batch_at(plain.structure, draw_batches(plain.config, scene.state, plain.data), 0)
        for name, first in (("forward", ()), ("minibatch_step", (plain.hypers,))):
            found = [
                getattr(each.backend, name)(*first, each.plan, learners_of(scene.state), scene.state.slots.alpha, batch)
                for each in (given, scene)
            ]
            assert_close(zip(*map(cases.leaves, found), strict=True))


def test_the_gradient_is_asked_for_environment_by_environment():
    """What it grows in one of three is what it grows there alone."""
    scene = build_scene(Rules(task="synthetic", deterministic="strict"), 3, "eager")
    engine, policy = scene.engine, gradient_of(scene)
    state = engine.init(SEED)

    def chosen(state):
        return policy.act(None, policy_input(engine, state, state.key))[1].action.tolist()

    assert chosen(state) == [chosen(select(state, torch.tensor([row])))[0] for row in range(3)]
    assert {engine.codec.actions[index].op for index in chosen(state)} == {Op.GERMINATE}


@pytest.mark.parametrize("count", [1, TILE - 1, TILE, TILE + 1, 3 * TILE])
def test_tiles_are_always_of_one_size(count):
    seen = []

    def run(tile):
        seen.append(tile.batch_size[0])
        return tile.replace(x=2 * tile["x"])

    x = torch.arange(count)
    found = Tiled(run)(TensorDict({"x": x}, batch_size=[count]))
    assert torch.equal(found["x"], 2 * x)
    assert seen == [TILE] * (1 + -(-count // TILE))  # the first looks whether places matter


def test_a_machine_on_which_places_matter_is_refused():
    tiled = Tiled(lambda tile: tile.replace(x=tile["x"] + 1e-7 * torch.arange(TILE)))
    with pytest.raises(ConfigError, match="deterministic = 'strict': x of equal rows of a tile differ on this machine"):
        tiled(TensorDict({"x": torch.ones(2)}, batch_size=[2]))
