"""One policy for several tasks: columns matched by name, actions by what they say."""

import pytest
import torch
from torchrl.envs.utils import check_env_specs

import esper
from esper.engine import Engine
from esper.runtime.tasks import named
from esper.simic.environment import EsperEnv
from esper.tamiyo.interface import common, from_table, meanings_of, to_table, translate
from esper.tamiyo.policies import PolicyInput, random_policy
from esper.utils import rng

ENVS = 4
NAMES = ("synthetic", "synthetic_tokens", "digits_deep")


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    small = {"steps_per_epoch": 1, "horizon": 6, "batch_size": 8}
    return {name: esper.make(named(name), ENVS, **small) for name in NAMES}


@pytest.fixture(scope="module")
def played(engines):
    """A few random decisions on, so that slots hold seeds of several kinds."""
    states = {}
    for name, engine in engines.items():
        state, policy = engine.init(0), random_policy(engine.codec)
        for decision in range(4):
            keys = rng.fold_in(rng.key(decision), torch.arange(ENVS))
            _, decided = policy.act(None, PolicyInput(state, engine.observe(state), engine.mask(state), keys))
            state, _ = engine.step(state, decided.action)
        states[name] = state
    return states


@pytest.fixture(scope="module")
def wide(engines):
    return common([engine.interface for engine in engines.values()])


def words(codec) -> list[str]:
    return [codec.describe(index) for index in range(codec.size)]


def test_the_common_interface_holds_everything_once(engines, wide):
    assert len(set(wide.columns)) == len(wide.columns)
    assert set(wide.columns) == {name for engine in engines.values() for name in engine.columns}
    ours = words(wide.codec)
    assert len(set(ours)) == len(ours)
    theirs = {word for engine in engines.values() for word in words(engine.codec)}
    planted = [word.rsplit(" ", 1) for word in theirs if word.startswith(("GERMINATE", "CHANGE_BLUEPRINT"))]
    assert set(ours) == theirs | {f"{what} {blend}" for what, _ in planted for _, blend in planted}
    assert ours[0] == "WAIT"
    alone = engines["synthetic"].interface
    assert common([alone]) == alone


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_seen_by_name_and_what_is_absent_is_zero(engines, played, wide, name):
    engine = engines[name]
    own = engine.observe(played[name])
    seen = translate(wide, engine.interface).observation(own)
    values = dict(zip(engine.columns, own.T, strict=True))
    for column, value in zip(wide.columns, seen.T, strict=True):
        assert torch.equal(value, values.get(column, torch.zeros(ENVS)))


@pytest.mark.parametrize("name", NAMES)
def test_actions_mean_the_same_on_both_sides(engines, played, wide, name):
    engine = engines[name]
    translation, own_mask = translate(wide, engine.interface), engine.mask(played[name])
    mask, own_words = translation.mask(own_mask), words(engine.codec)
    for index, word in enumerate(words(wide.codec)):
        known = own_words.index(word) if word in own_words else None
        legal = torch.zeros(ENVS, dtype=torch.bool) if known is None else own_mask[:, known]
        assert torch.equal(mask[:, index], legal)
        answer = int(translation.action(torch.tensor([index])))
        assert answer == (engine.codec.size if known is None else known)
    scores = torch.randn((ENVS, wide.codec.size), generator=torch.Generator().manual_seed(0))
    back = dict(zip(own_words, translation.log_probs(scores).T, strict=True))
    assert all(torch.equal(back[word], scores[:, words(wide.codec).index(word)]) for word in own_words)


def test_a_narrow_policy_on_a_wide_task_knows_only_its_own(engines, played):
    """The other slots of ``digits_deep`` cannot be named by a policy of three slots."""
    narrow, deep = engines["synthetic"].interface, engines["digits_deep"]
    translation = translate(narrow, deep.interface)
    log_probs = translation.log_probs(torch.zeros(ENVS, narrow.codec.size))
    for index, action in enumerate(deep.codec.actions):
        assert bool((log_probs[:, index] == (0.0 if action.slot < 3 else -torch.inf)).all())
    assert bool(translation.mask(deep.mask(played["digits_deep"]))[:, 0].all())


def test_an_interface_translates_to_itself_and_survives_a_file(engines, wide):
    for interface in (wide, engines["synthetic_tokens"].interface):
        translation, count = translate(interface, interface), interface.codec.size
        assert torch.equal(translation.actions, torch.arange(count))
        assert torch.equal(translation.own_actions, torch.arange(count))
        assert torch.equal(translation.columns, torch.arange(len(interface.columns)))
        again = from_table(to_table(interface))
        assert again.columns == interface.columns and meanings_of(again.codec) == meanings_of(interface.codec)


def test_an_environment_of_a_wider_interface(engines, wide):
    env = EsperEnv(engines["synthetic_tokens"], interface=wide)
    with torch.random.fork_rng(devices=[]):
        check_env_specs(env)
    first = env.reset()
    foreign = next(i for i, word in enumerate(words(wide.codec)) if "conv_heavy" in word)
    assert not bool(first["action_mask"][:, foreign].any())
    after = env.step(first.set("action", torch.full((ENVS,), foreign)))["next"]
    assert bool((after["refused"] == 1).all()), "an action the task does not have is refused, not taken for another"
