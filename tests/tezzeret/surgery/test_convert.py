"""A host as a graph and back: the same function, in training and in inference, on every backend that takes it."""

from functools import cache

import pytest
import torch
from surgery_nets import F64, HOSTS, Perceptron, drawn, networks_of, patient_of
from torch import nn
from torch.nn import functional as F

import esper
from esper.kasmina import arena
from esper.tezzeret.surgery import Impossible, anatomy_of, host_of, learned_of, learners, part
from esper.tezzeret.surgery.forward import Forward


@cache
def made(name):
    return HOSTS[name]()


def run(host, learned, x, is_training):
    """A host block by block: outputs, and buffers."""
    kept = []
    params, buffers = arena.split_blocks(host, learned.host.params), arena.split_buffers(host, learned.buffers)
    for block, row, held in zip(host.blocks, params, buffers, strict=True):
        own, statistics = block.reads.views(row), block.buffer_layout.views(held)
        if is_training:
            x, new = block.train(own, statistics, x, None)
            kept += [new[param.name] for param in block.buffers]
        else:
            x = block.infer(own, statistics, x)
    return x, kept


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_and_its_body_compute_the_same(name):
    host, networks = made(name), networks_of(made(name))
    patient = patient_of(host)
    x = patient.samples.inputs.expand(3, *patient.samples.inputs.shape)
    again = host_of(patient.body)
    rows = learners(again, learned_of(host, networks), networks.seeds, networks.seed_buffers)
    for is_training in (True, False):
        (out, kept), (wanted, wanted_kept) = run(again, rows, x, is_training), run(host, networks, x, is_training)
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
        for new, old in zip(kept, wanted_kept, strict=True):
            torch.testing.assert_close(new, old, rtol=0, atol=1e-12)
    whole = Forward(patient.body.graph)(patient.learned.params, patient.learned.buffers, x).output
    torch.testing.assert_close(whole, run(host, networks, x, True)[0], rtol=0, atol=1e-12)
    assert [block.site for block in again.blocks] == [block.site for block in host.blocks]
    assert [block.flops for block in again.blocks] == [block.flops for block in host.blocks]
    assert again.num_params == host.num_params


@pytest.mark.parametrize("name", HOSTS)
def test_what_was_read_and_written_reads_as_a_network_of_the_same_layers(name):
    body = anatomy_of(made(name))
    again = anatomy_of(host_of(body))
    assert again.params.keys() == body.params.keys() and again.buffers.keys() == body.buffers.keys()
    assert anatomy_of(host_of(again)) == again
    assert [end.site for end in again.ends] == [end.site for end in body.ends]


def test_a_graph_is_what_plain_layers_compute():
    module = drawn(Perceptron)
    patient = patient_of(esper.host(module, torch.zeros(2, 1, 4, 4, dtype=F64), ("relu",)))
    row = {name: value[1] for name, value in patient.learned.params.items()}
    h = patient.samples.inputs.flatten(1)
    for name in ("one", "two", "three"):
        h = F.relu(F.linear(h, row[f"{name}.weight"], row[f"{name}.bias"]))
    wanted = F.linear(h, row["head.weight"], row["head.bias"])
    x = patient.samples.inputs.expand(3, -1, -1, -1, -1)
    found = Forward(patient.body.graph)(patient.learned.params, {}, x).output[1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_part_takes_networks_out():
    learned = patient_of(made("cnn")).learned
    some = part(learned, torch.tensor([2, 0]))
    for table, taken in zip(learned[:3], some[:3], strict=True):
        assert all(torch.equal(taken[name], table[name][[2, 0]]) for name in table)
    assert some.steps.tolist() == [2, 0]


class Dropping(Perceptron):
    def __init__(self):
        super().__init__()
        self.act = nn.Dropout(0.5)


def test_what_no_graph_can_say_is_refused_with_the_block():
    host = esper.host(drawn(Dropping), torch.ones(2, 1, 4, 4, dtype=F64), ())
    with pytest.raises(Impossible, match="Dropping, block 0: draws random numbers; expected a block without dropout"):
        anatomy_of(host)
