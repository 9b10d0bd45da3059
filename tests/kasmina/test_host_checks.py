"""The check for hosts accepts what is sound, names what is not, and a user's own host grows."""

import importlib.util
from pathlib import Path

import pytest

import esper
from esper.kasmina.checks import HostError, check_host
from esper.kasmina.cnn import cnn_host
from esper.kasmina.host import Host, Tie, plain_block
from esper.kasmina.layers import embed, linear
from esper.kasmina.layout import Param, constant, fan_in_uniform
from esper.kasmina.site import token_site, vector_site
from esper.kasmina.transformer import transformer_host
from esper.tamiyo.scripted import grow, wait
from esper.utils.stats import mean_interval

MLP_PATH = Path(__file__).with_name("mlp_host.py")
_spec = importlib.util.spec_from_file_location("mlp_host", MLP_PATH)
mlp = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mlp)

SOUND = [
    cnn_host((1, 8, 8), 10, num_blocks=3, base_channels=4, pool_blocks=2),
    cnn_host((3, 9, 8), 2, num_blocks=1, base_channels=1),
    transformer_host(11, 6, num_layers=2, num_heads=2, width=8),
    transformer_host(96, 16, num_layers=0, num_heads=4, width=32),
    transformer_host(2, 1, num_layers=1, num_heads=1, width=2),
    mlp.mlp_host((1, 4, 4), 5, (6, 7)),
]


@pytest.mark.parametrize("host", SOUND, ids=lambda host: host.name)
def test_sound_hosts_pass(host):
    check_host(host)


WEIGHT, HEAD = fan_in_uniform("weight", (4, 4), 4), fan_in_uniform("head", (3, 4), 4)
FIRST = plain_block((WEIGHT,), lambda p, x: linear(x, p["weight"]), vector_site(4), 16)
LAST = plain_block((HEAD,), lambda p, x: linear(x, p["head"]), None, 12)
GOOD = Host("good", (4,), 3, (FIRST, LAST))


def first(**changes) -> Host:
    return GOOD._replace(blocks=(FIRST._replace(**changes), LAST))


def plain(apply) -> Host:
    return GOOD._replace(blocks=(plain_block((WEIGHT,), apply, vector_site(4), 16), LAST))


def doubling(p, x):
    x.mul_(2)
    return linear(x, p["weight"])


CALLS = []


def counting(p, x):
    CALLS.append(x)
    return linear(x, p["weight"]) + 1e-6 * len(CALLS)


COUNT = (constant("count", (2,), 0.0),)


def counted(train) -> Host:
    return first(buffers=COUNT, train=train, infer=lambda p, b, x: linear(x, p["weight"]))


TABLE = Param("table", (5, 4), "normal", 0.1)


def text(apply) -> Host:
    blocks = (
        plain_block((TABLE,), lambda p, x: apply(embed(x, p["table"])), token_site(6, 4), 0),
        plain_block((), lambda p, x: linear(x, p["table"]), None, 20, (Tie(0, TABLE),)),
    )
    return Host("text", (6,), 5, blocks, takes_tokens=True)


BROKEN = {
    "tied to": GOOD._replace(blocks=(FIRST, LAST._replace(ties=(Tie(1, WEIGHT),)))),
    "distinct names": first(params=(WEIGHT, WEIGHT)),
    "1 outputs": GOOD._replace(num_outputs=1),
    "no parameters": GOOD._replace(blocks=(LAST._replace(params=()),)),
    "a site after the last block": GOOD._replace(blocks=(FIRST,)),
    "flops -1 in block 0": first(flops=-1),
    "flops 1.5 in block 0": first(flops=1.5),
    "a cost of 0": GOOD._replace(blocks=(FIRST._replace(flops=0), LAST._replace(flops=0))),
    "drawn at random": first(buffers=(Param("noise", (2,), "normal", 1.0),)),
    r"output \[3, 4, 4\] in block 0 \(inference\); expected \(3, 4, 5\)": first(site=vector_site(5)),
    r"output \[3, 4, 3\] in block 1 .*; expected \(3, 4, 7\)": GOOD._replace(num_outputs=7),
    "output dtype torch.float32 in block 0": plain(lambda p, x: linear(x.float(), p["weight"].float())),
    "non-finite output in block 0": plain(lambda p, x: linear(x, p["weight"]) / 0),
    r"buffers \{\} in block 0": counted(lambda p, b, x, key: (linear(x, p["weight"]), {})),
    r"buffers \{'count': \(3,\)\}": counted(lambda p, b, x, key: (linear(x, p["weight"]), {"count": b["count"][:, 0]})),
    "a first loss of": GOOD._replace(blocks=(FIRST, LAST._replace(params=(HEAD._replace(scale=40.0),)))),
    "writing into its arguments": plain(doubling),
    "giving two results": plain(counting),
    "differing by": first(infer=lambda p, b, x: 2 * linear(x, p["weight"])),
    "networks that depend on each other; ": plain(
        lambda p, x: linear(x, p["weight"].mean(0, True).expand(len(x), 4, 4))
    ),
    "networks that depend on each other in training": counted(
        lambda p, b, x, key: (linear(x, p["weight"]) + x.mean(0, keepdim=True), b)
    ),
    "samples that depend on each other in inference": plain(lambda p, x: linear(x - x.mean(1, True), p["weight"])),
    "predictions that depend on later tokens": text(lambda h: h + h.mean(2, keepdim=True)),
    "host 'good': raised KeyError: 'wait'; ": plain(lambda p, x: linear(x, p["wait"])),
    "host 'good': raised RuntimeError: ": plain(lambda p, x: x @ p["weight"][0, :2]),
    "host 'good': raised TypeError: 'NoneType'": first(train=None),
    "host 3: raised AttributeError": 3,
    "no finite gradient to block 0": plain(lambda p, x: linear(x, p["weight"].detach())),
}


def test_the_pieces_of_the_broken_hosts_are_sound():
    check_host(GOOD)
    check_host(text(lambda h: h))
    check_host(counted(lambda p, b, x, key: (linear(x, p["weight"]), {"count": b["count"] + 1})))


@pytest.mark.parametrize("fault", BROKEN)
def test_each_broken_contract_is_named(fault):
    with pytest.raises(HostError, match=fault) as error:
        check_host(BROKEN[fault])
    assert "\n" not in str(error.value) and "expected" in str(error.value)


def test_the_users_host_is_small():
    assert MLP_PATH.read_text().count("\n") <= 60


def test_the_users_host_grows_and_its_seeds_help():
    """Two permanent seeds in every host; the paired 95 % interval of the gain is above 3 percentage points."""
    engine = esper.make(mlp.mlp_task(), 48)
    accuracies = []
    for policy in (wait(engine.codec), grow(engine.codec, "mlp_small")):
        state = engine.init(0)
        for _ in range(engine.config.horizon):
            state, _ = engine.step(state, policy(engine.mask(state)))
        accuracies.append(state.signals.val_accuracy)
    assert (state.slots.stage == int(esper.Stage.FOSSILIZED)).all()
    mean, half = mean_interval(accuracies[1] - accuracies[0])
    assert mean - half > 3, (mean, half)


def test_the_users_slots_offer_what_fits():
    codec = esper.make(mlp.mlp_task(), 2).codec
    offered = {(a.slot, a.blueprint) for a in codec.actions if a.op == esper.Op.GERMINATE}
    assert offered == {(slot, kind) for slot in range(2) for kind in range(3)}
