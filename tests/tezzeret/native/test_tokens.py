"""Sequences of tokens on the native network, against the definition in float64: hosts, seeds, bypasses, one's own."""

from typing import Any

import pytest
import torch
from tezzeret_states import Pair, batch_of, double, evaluated, largest_gap
from torch import Tensor
from torch.nn import functional as F

import esper
from esper.kasmina.blueprint import Blueprint, bypassing, preserving
from esper.kasmina.counterfactuals import coalitions, single_changes
from esper.kasmina.host import Host, Tie, plain_block
from esper.kasmina.layout import Param, Params, constant, fan_in_uniform
from esper.kasmina.site import token_site
from esper.kasmina.slot_table import take_table
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.kasmina.token_bypasses import token_probe, transformer_bypass
from esper.kasmina.transformer import transformer_host
from esper.leyline.actions import Blend
from esper.leyline.config import ConfigError, Isolation
from esper.leyline.stages import Stage
from esper.runtime.tasks import TASKS
from esper.tezzeret.native.library import library
from esper.tolaria.markov import draw_chain, markov

pytestmark = [
    pytest.mark.skipif(library() is None, reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # vmap has no attention of its own
]

ENVS, BATCH, TOKENS, LENGTH, WIDTH = 16, 13, 5, 6, 8
DATA = markov(draw_chain(vocabulary=TOKENS, sharpness=3.0, seed=0), block=LENGTH, num_train=64, num_val=20)
BOX = (*TOKEN_BLUEPRINTS, transformer_bypass(4), transformer_bypass(6, 2), token_probe())
SLOTS = {
    "behind blocks": (0, 1, 1, 2),
    "to the logits": ("input:logits", 0, "block1:logits", "input:logits"),
    "over blocks": ("block0:block1", 1, "block0:block2", "block2:logits"),
}


def task(slots: tuple[Any, ...], isolation: Isolation, box: tuple[Blueprint, ...] = BOX, **settings: Any) -> esper.Task:
    host = transformer_host(TOKENS, LENGTH, num_layers=2, num_heads=2, width=WIDTH)
    numbers = {"slots": slots, "batch_size": BATCH, "steps_per_epoch": 2, "eval_batch_size": 9, "isolation": isolation}
    numbers["blends"] = (Blend.LINEAR,)
    return esper.Task("tokens", host, box, DATA, numbers | settings)


def assert_equal(pair: Pair, limit: float = 1e-4) -> None:
    """Gradients of a minibatch; and the outputs of all lanes."""
    assert pair.fast.describe()[0].startswith("native")
    pair.assert_near(batch_of(pair.fast, BATCH), limit)
    table = take_table(pair.state.slots)
    for wanted in (single_changes(table), coalitions(table)[0]):
        outputs = evaluated(pair.fast, pair.state, wanted)[1]
        exact = evaluated(pair.exact, double(pair.state), wanted)[1]
        assert outputs.shape == exact.shape and largest_gap(outputs, exact) < 1e-4


@pytest.mark.parametrize("isolation", Isolation)
@pytest.mark.parametrize("slots", SLOTS)
def test_transformers_equal_the_definition(slots: str, isolation: Isolation) -> None:
    """Tied heads, all blueprints and bypasses, in every stage."""
    blends = tuple(Blend) if slots == "behind blocks" else (Blend.LINEAR,)
    pair = Pair(task(SLOTS[slots], isolation, blends=blends), ENVS)
    stages = set(pair.state.slots.stage.flatten().tolist())
    assert {int(Stage.TRAINING), int(Stage.BLENDING), int(Stage.DORMANT), int(Stage.FOSSILIZED)} <= stages
    assert_equal(pair)


@pytest.mark.usefixtures("build")
def test_transformers_at_every_width() -> None:
    assert_equal(Pair(task(SLOTS["to the logits"], Isolation.OBJECTIVE), 8))


@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw"])
def test_a_step_equals_that_of_the_definition(rule: str) -> None:
    settings = {"host_optimizer": rule, "seed_optimizer": rule, "blends": tuple(Blend)}
    settings["adam_epsilon"] = 1e-3  # a key's bias has no gradient but rounding, of which Adam would make a full step
    pair = Pair(task(SLOTS["behind blocks"], Isolation.OBJECTIVE, **settings), ENVS)
    wait = torch.zeros(ENVS, dtype=torch.int64)
    after, event = pair.fast.step(pair.state, wait)
    true, exact = pair.exact.step(double(pair.state), wait)
    for found, wanted in ((event.epoch.loss, exact.epoch.loss), (event.evaluation.loss, exact.evaluation.loss)):
        assert largest_gap(found, wanted) < 1e-4
    for place in (("host", "params"), ("seeds", "params"), ("seeds", "moments"), ("signals", "val_loss")):
        assert largest_gap(after.get(place), true.get(place)) < 1e-3, place


@pytest.mark.parametrize("name", ["chars", "synthetic_tokens"])
def test_the_presets_are_native(name: str) -> None:
    preset = TASKS[name]()
    pair = Pair(preset._replace(settings=preset.settings | {"eval_batch_size": 64}), 6)
    pair.assert_near(batch_of(pair.fast, 9))


def test_an_environment_depends_on_nothing_else() -> None:
    """Rows of a table that many tokens read add up in one order, whatever the threads: to the bit."""
    which = task(SLOTS["to the logits"], Isolation.OBJECTIVE)
    many, few = (esper.make(which, count, backend="native") for count in (ENVS, 3))
    state = Pair(which, ENVS).state
    wait = torch.zeros(ENVS, dtype=torch.int64)
    chosen = torch.tensor([9, 2, 5])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = many.step(state, wait)[0]
        torch.set_num_threads(1)
        alone = few.step(state[chosen], wait[:3])[0]
    finally:
        torch.set_num_threads(threads)
    for place in (("host", "params"), ("seeds", "params"), ("seeds", "moments"), ("signals", "val_loss")):
        assert torch.equal(alone.get(place), together.get(place)[chosen]), place


# As people write it, for one network


def attended(p: Params, x: Tensor) -> Tensor:
    """Two heads, a learned bias by distance, and a mask that is filled in."""
    y = F.rms_norm(x, x.shape[-1:], p["gain"])
    query, key, value = F.linear(y, p["qkv"]).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    place = torch.arange(x.shape[1])
    far = (place[:, None] - place).clamp(min=0)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5 + p["far"][:, far]
    scores = scores.masked_fill(place[:, None] < place, -torch.inf)
    return x + F.linear((scores.softmax(-1) @ value).transpose(1, 2).flatten(2), p["out"])


def mixed(p: Params, x: Tensor) -> Tensor:
    """Each position with those before it, by one matrix; every second one alone."""
    matrix = torch.tril(p["mix"]).softmax(-1).tril()
    even = torch.arange(x.shape[1]) % 2 == 0
    return x + torch.where(even[:, None], F.gelu(matrix @ x, approximate="tanh"), F.silu(x @ p["alone"]))


def looked_up(p: Params, x: Tensor) -> Tensor:
    """Logits of the last two tokens, by tables that are indexed."""
    before = F.pad(x, (1, 0))[:, :-1]
    h = p["now"][x] + F.embedding(before, p["before"]) * F.embedding(torch.arange(x.shape[1]), p["place"])
    return F.linear(torch.tanh(h), p["out"], p["bias"])


def weight(name: str, *shape: int) -> Param:
    return fan_in_uniform(name, shape, shape[-1])


def own(name: str, params: tuple[Param, ...], apply: Any) -> Blueprint:
    return preserving(name, frozenset({"token"}), lambda site: params, torch.func.vmap(apply), lambda site: 1, 9.0)


OWN = (
    own(
        "attend",
        (
            *(constant("gain", (WIDTH,), 1.1), weight("qkv", 3 * WIDTH, WIDTH), weight("far", 2, LENGTH)),
            weight("out", WIDTH, WIDTH),
        ),
        attended,
    ),
    own("mixer", (weight("mix", LENGTH, LENGTH), weight("alone", WIDTH, WIDTH)), mixed),
    bypassing(
        "tables",
        lambda source, target: (source.kind, target.kind) == ("tokens", "logits"),
        lambda source, target: (
            *(weight("now", TOKENS, 3), weight("before", TOKENS, 3), weight("place", LENGTH, 3)),
            *(weight("out", TOKENS, 3), constant("bias", (TOKENS,), 0.1)),
        ),
        torch.func.vmap(looked_up),
        lambda source, target: 1,
    ),
)


def test_blueprints_in_plain_torch_equal_the_definition() -> None:
    assert_equal(Pair(task((0, "input:logits", 1), Isolation.OBJECTIVE, OWN), ENVS))


def tied_host(tie: bool = True, rows: int = TOKENS) -> Host:
    """What a table's rows give is read by a block of its own, and again, changed, by the head."""
    table = weight("table", rows, WIDTH)
    site = token_site(LENGTH, WIDTH)
    ties = (Tie(0, table),)
    blocks = (
        plain_block((table,), torch.func.vmap(lambda p, x: F.embedding(x, p["table"]) * 2), site, 1),
        plain_block(
            (weight("w", WIDTH, WIDTH),),
            torch.func.vmap(lambda p, x: F.linear(x, p["w"]) + p["table"].mean(0)),
            site,
            1,
            ties,
        ),
        plain_block((), torch.func.vmap(lambda p, x: F.linear(x, p["table"] * 2)), None, 1, ties),
    )
    return Host("tied", (LENGTH,), TOKENS, blocks, takes_tokens=True)


def test_tensors_that_follow_from_tied_ones() -> None:
    """Of two readers; both derive something from it, and its gradients add up."""
    which = task((0, 1), Isolation.OBJECTIVE, TOKEN_BLUEPRINTS)._replace(host=tied_host())
    assert_equal(Pair(which, ENVS))


def refused(apply: Any, rows: int = TOKENS) -> esper.Task:
    host = tied_host()
    table = weight("table", rows, WIDTH)
    first = host.blocks[0]._replace(
        params=(table,),
        train=lambda p, b, x, key: (torch.func.vmap(apply)(p, x), b),
        infer=lambda p, b, x: torch.func.vmap(apply)(p, x),
    )
    head = plain_block((weight("out", TOKENS, WIDTH),), torch.func.vmap(lambda p, x: F.linear(x, p["out"])), None, 1)
    return task((0,), Isolation.OBJECTIVE, TOKEN_BLUEPRINTS)._replace(host=host._replace(blocks=(first, head)))


REFUSED = {
    "computed tokens": (refused(lambda p, x: p["table"][x * 2 - x]), "rows of a table at computed numbers"),
    "fewer rows than tokens": (refused(lambda p, x: p["table"][:3][x % 3]), "operation (__mod__|remainder)"),
    "a row that is held": (
        refused(lambda p, x: F.embedding(x, p["table"], padding_idx=0)),
        "operation embedding with padding_idx = 0",
    ),
    "one of several": (refused(lambda p, x: F.one_hot(x, TOKENS) @ p["table"]), "operation one_hot"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name: str) -> None:
    which, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=f"^backend 'native': tied, block 0: {reason}"):
        esper.make(which, 2, backend="native")
