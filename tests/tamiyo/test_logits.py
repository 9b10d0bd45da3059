"""Factored logits against brute force over the legal combinations, in plain Python floats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.modules import MaskedCategorical

import esper
from esper.leyline.actions import Blend, Op, build_codec
from esper.tamiyo.logits import HeadLogits, factored_logits, num_slots, uniform_logits

CODECS = {
    "usual": build_codec(((0, 1, 2), (0, 2), (1,)), (Blend.SIGMOID, Blend.COSINE), ("a", "b", "c")),
    "retarget": build_codec(((0, 1), (0,)), (Blend.SIGMOID,), ("a", "b"), retarget=True),
    "small": build_codec(((0,),), (Blend.LINEAR,), ("a",)),
    "none": build_codec((), (Blend.LINEAR,), ("a",)),
}


def random_mask(codec, rows, generator, density=0.3):
    mask = torch.rand(rows, codec.size, generator=generator) < density
    mask[:, 0] = True
    mask[0, 1:] = False
    return mask


def random_scores(codec, rows, generator, scale=2.0, dtype=torch.float64):
    ops = len(codec.ops)
    shapes = ((ops,), (ops, max(num_slots(codec), 1)), (len(codec.blueprint_names),), (4,), (5,))
    return HeadLogits(*(scale * torch.randn(rows, *shape, generator=generator, dtype=dtype) for shape in shapes))


def brute_force(codec, scores, mask):
    """Log-probabilities of one row: {index: log p}, from the definition, without any max-shift or tensor."""
    op, slot, blueprint, blend, target = (part.tolist() for part in scores)
    legal = [index for index in range(codec.size) if mask[index]]
    ops = {codec.actions[index].op for index in legal}
    op_total = sum(math.exp(op[each]) for each in ops)

    def weight(action):
        total = slot[action.op][action.slot] if action.slot >= 0 else 0.0
        if action.blueprint >= 0:
            total += blueprint[action.blueprint] + blend[action.blend]
        if action.target >= 0:
            total += target[action.target]
        return math.exp(total)

    result = {}
    for index in legal:
        action = codec.actions[index]
        peers = sum(weight(codec.actions[other]) for other in legal if codec.actions[other].op == action.op)
        result[index] = math.log(math.exp(op[action.op]) / op_total * weight(action) / peers)
    return result


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), density=st.floats(0.0, 1.0))
def test_equal_to_brute_force(name, seed, density):
    codec, generator = CODECS[name], torch.Generator().manual_seed(seed)
    mask = random_mask(codec, 4, generator, density)
    scores = random_scores(codec, 4, generator)
    logits = factored_logits(codec, scores, mask)
    distribution = MaskedCategorical(logits=logits, mask=mask)
    log_prob = torch.stack([distribution.log_prob(torch.full((4,), index)) for index in range(codec.size)], dim=1)
    for row in range(4):
        expected = brute_force(codec, HeadLogits(*(part[row] for part in scores)), mask[row].tolist())
        assert math.isclose(sum(map(math.exp, expected.values())), 1.0, rel_tol=1e-12)
        for index in range(codec.size):
            if index in expected:
                assert logits[row, index].item() == pytest.approx(expected[index], abs=1e-6)
                assert log_prob[row, index].item() == pytest.approx(expected[index], abs=1e-6)
            else:
                assert logits[row, index].item() == torch.finfo(torch.float64).min / 4
        entropy = -sum(math.exp(log) * log for log in expected.values())
        assert distribution.entropy()[row].item() == pytest.approx(entropy, abs=1e-6)


def test_leading_dimensions_and_dtypes_agree():
    codec, generator = CODECS["usual"], torch.Generator().manual_seed(1)
    mask, scores = random_mask(codec, 12, generator), random_scores(codec, 12, generator)
    flat = factored_logits(codec, scores, mask)
    folded = factored_logits(codec, HeadLogits(*(s.unflatten(0, (3, 4)) for s in scores)), mask.unflatten(0, (3, 4)))
    assert torch.equal(folded.flatten(0, 1), flat)
    assert torch.equal(factored_logits(codec, HeadLogits(*(s[5] for s in scores)), mask[5]), flat[5])
    single = factored_logits(codec, HeadLogits(*(s.float() for s in scores)), mask)
    assert single.dtype == torch.float32
    assert torch.allclose(single[mask].double(), flat[mask], atol=1e-5)


def test_slots_are_told_apart_by_op():
    codec = CODECS["usual"]
    scores = HeadLogits(torch.zeros(6), torch.zeros(6, 3), torch.zeros(3), torch.zeros(4))
    scores.slot[int(Op.CULL), 2] = 3.0
    logits = factored_logits(codec, scores, torch.ones(codec.size, dtype=torch.bool))
    cull = [logits[codec.encode(esper.Action(Op.CULL, slot))].item() for slot in range(3)]
    advance = [logits[codec.encode(esper.Action(Op.ADVANCE, slot))].item() for slot in range(3)]
    assert cull[2] > cull[0] + 2.9 and len({round(value, 6) for value in advance}) == 1


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e18, 1e30])
def test_gradients_are_finite_at_extreme_scores(scale):
    codec, generator = CODECS["usual"], torch.Generator().manual_seed(2)
    mask = random_mask(codec, 64, generator, 0.1)
    scores = HeadLogits(*(s.requires_grad_() for s in random_scores(codec, 64, generator, scale, torch.float32)))
    distribution = MaskedCategorical(logits=factored_logits(codec, scores, mask), mask=mask)
    action = mask.float().argmax(1)
    assert distribution.log_prob(action).isfinite().all() and distribution.entropy().isfinite().all()
    gradients = torch.autograd.grad(distribution.log_prob(action).sum() + distribution.entropy().sum(), scores)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all((gradient[0] == 0).all() for gradient in gradients), "a row with WAIT only has nothing to learn"


def test_gradients_are_those_of_the_definition():
    codec, generator = CODECS["usual"], torch.Generator().manual_seed(3)
    mask = random_mask(codec, 2, generator, 0.3)
    scores = random_scores(codec, 2, generator)

    def legal_logits(*parts):
        return factored_logits(codec, HeadLogits(*parts), mask)[mask]

    assert torch.autograd.gradcheck(legal_logits, [s.requires_grad_() for s in scores], fast_mode=True)


def test_one_legal_action_has_no_entropy():
    codec, generator = CODECS["usual"], torch.Generator().manual_seed(4)
    mask = torch.eye(codec.size, dtype=torch.bool)
    logits = factored_logits(codec, random_scores(codec, codec.size, generator), mask)
    distribution = MaskedCategorical(logits=logits, mask=mask)
    assert torch.equal(distribution.entropy(), torch.zeros(codec.size, dtype=torch.float64))
    assert torch.equal(distribution.log_prob(torch.arange(codec.size)), torch.zeros(codec.size, dtype=torch.float64))


def test_uniform_logits_split_ops_then_arguments():
    codec, generator = CODECS["usual"], torch.Generator().manual_seed(5)
    mask = random_mask(codec, 32, generator)
    probability = uniform_logits(codec, mask, torch.float64).exp()
    for row in range(32):
        legal = [index for index in range(codec.size) if mask[row, index]]
        ops = [codec.actions[index].op for index in legal]
        for index, op in zip(legal, ops, strict=True):
            expected = 1 / len(set(ops)) / ops.count(op)
            assert probability[row, index].item() == pytest.approx(expected, rel=1e-12)


def test_a_million_samples_are_legal():
    codec, generator = CODECS["usual"], torch.Generator().manual_seed(6)
    mask = random_mask(codec, 5000, generator)
    scores = random_scores(codec, 5000, generator, 5.0, torch.float32)
    distribution = MaskedCategorical(logits=factored_logits(codec, scores, mask), mask=mask)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(10):
            action = distribution.sample((20,))
            assert mask.expand(20, -1, -1).gather(2, action.unsqueeze(2)).all()


def test_compiles_to_one_graph():
    codec, generator = CODECS["usual"], torch.Generator().manual_seed(7)
    mask, scores = random_mask(codec, 8, generator), random_scores(codec, 8, generator)
    compiled = torch.compile(factored_logits, fullgraph=True, backend="eager")
    assert torch.equal(compiled(codec, scores, mask), factored_logits(codec, scores, mask))


def test_of_a_real_engine(small_task):
    engine = esper.make(small_task, num_envs=2)
    logits = uniform_logits(engine.codec, engine.mask(engine.init(0)))
    probability = torch.zeros(2, len(engine.codec.ops)).index_add(1, engine.codec.op, logits.exp())
    expected = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0, 0.0]).expand(2, -1)
    assert torch.allclose(probability, expected, atol=1e-6), "fresh slots: WAIT or GERMINATE, equally likely"
