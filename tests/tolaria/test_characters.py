"""Text as a dataset, and chains whose best loss is known in closed form."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import esper
from esper.tamiyo.scripted import grow, wait
from esper.tolaria.characters import UNKNOWN, characters, encode, python_topics, vocabulary_of
from esper.tolaria.data import Dataset, DatasetError, Part, validate
from esper.tolaria.evaluation import bits, perplexity
from esper.tolaria.markov import best_losses, draw_chain, markov, stationary

TEXT = "".join(chr(97 + (i * i + i // 7) % 26) for i in range(997))


def rows(tokens: torch.Tensor, vocabulary: str) -> list[str]:
    return ["".join(vocabulary[i] for i in row) for row in tokens.tolist()]


@given(text=st.text(max_size=60), limit=st.integers(2, 12))
def test_vocabulary_and_encoding_follow_their_description(text, limit):
    """Against plain Python on str."""
    vocabulary = vocabulary_of(text, limit)
    counts = Counter(text)
    if len(counts) <= limit:
        assert vocabulary == "".join(sorted(counts))
    else:
        kept = sorted(counts, key=lambda c: (-counts[c], c))[: limit - 1]
        assert vocabulary == "".join(sorted(kept)) + UNKNOWN
    if vocabulary:
        expected = [vocabulary.index(c) if c in vocabulary else len(vocabulary) - 1 for c in text]
        assert encode(text, vocabulary).tolist() == expected


@pytest.mark.parametrize("block", [1, 4, 16, 47])
def test_windows_are_the_text(block):
    """Inputs joined are the text from its start, targets the text from its second character; the split is two cuts."""
    data = characters(TEXT, block)
    symbols = vocabulary_of(TEXT, 128)
    assert data.num_classes == len(symbols) and data.input_shape == (block,)
    first, second = len(TEXT) - 99, len(TEXT) - 50  # of 997 characters 99 are held out, of those 49 validate
    pieces = {"train": TEXT[:first], "validation": TEXT[first:second], "test": TEXT[second:]}
    for name, piece in pieces.items():
        inputs, targets = data.parts[name]
        count = (len(piece) - 1) // block
        assert "".join(rows(inputs, symbols)) == piece[: count * block]
        assert "".join(rows(targets, symbols)) == piece[1 : count * block + 1]
    assert data.sizes == {name: (len(piece) - 1) // block for name, piece in pieces.items()}


def test_rare_characters_share_the_last_token():
    text = ("ab" * 50 + "xyz") * 4
    data = characters(text, 4, max_vocabulary=3)
    assert vocabulary_of(text, 3) == "ab" + UNKNOWN and data.num_classes == 3
    assert (data.train.inputs == 2).any()


def test_pythons_topics_are_english_in_a_fixed_order():
    text = python_topics()
    assert text == python_topics() and len(text) > 200_000
    words = Counter(text.split())
    assert {"the", "of", "a", "is"} <= {word for word, _ in words.most_common(12)}
    starts = [text.index(title) for title in ('The "assert" statement\n', 'The "break" statement\n', 'The "yield"')]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"block": 0}, "block: found 0, expected at least 1"),
        ({"max_vocabulary": 1}, "max_vocabulary: found 1, expected at least 2"),
        ({"text": "a" * 1000}, "text: found 1 different characters, expected at least 2"),
        ({"text": ""}, "text: found 0 different characters, expected at least 2"),
        ({"text": "ab" * 165}, "text: found 330 characters, expected about 340 for windows of 16"),
    ],
)
def test_what_cannot_be_used_is_named(kwargs, said):
    with pytest.raises(DatasetError) as error:
        characters(**({"text": TEXT, "block": 16} | kwargs))
    assert said in str(error.value) and "\n" not in str(error.value)


TOKENS = torch.arange(24).reshape(4, 6) % 5
EVERY, FEW = Part(TOKENS, (TOKENS + 1) % 5), Part(TOKENS[:2], TOKENS[:2])
GOOD = Dataset("text", EVERY, FEW, FEW, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train": EVERY._replace(targets=TOKENS[:, 0])},
            "train.targets: found shape (4,), expected (4, 6), one for each",
        ),
        ({"test": FEW._replace(targets=TOKENS[:2, :5])}, "test.targets: found shape (2, 5), expected (2, 6)"),
        ({"train": EVERY._replace(inputs=TOKENS[..., None])}, "tokens of rank 3 (shape (4, 6, 1)), expected rank 2"),
        ({"validation": Part(TOKENS[:2].double(), TOKENS[0, :2])}, "validation.inputs: found dtype torch.float64"),
        (
            {"train": EVERY._replace(inputs=TOKENS.index_fill(1, torch.tensor([2]), 5))},
            "train.inputs: found token 5 at index 0, 2",
        ),
        (
            {"train": EVERY._replace(targets=TOKENS.index_fill(0, torch.tensor([3]), -1))},
            "train.targets: found label -1 at index 3, 0",
        ),
        ({"train": EVERY._replace(inputs=TOKENS.int())}, "train.inputs: found dtype torch.int32, expected a floating"),
    ],
)
def test_validate_names_what_is_wrong_with_tokens(changes, said):
    assert validate(GOOD, (6,)) is GOOD
    with pytest.raises(DatasetError) as error:
        validate(GOOD._replace(**changes))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_stay_integers(dtype):
    moved = GOOD.to("cpu", dtype)
    assert moved.has_tokens
    for part, same in zip(GOOD[1:4], moved[1:4], strict=True):
        assert torch.equal(part.inputs, same.inputs) and torch.equal(part.targets, same.targets)


def test_chains_keep_their_laws():
    chain = draw_chain(5, 2.0, 3)
    pairs = stationary(chain)
    torch.testing.assert_close(chain.sum(-1), torch.ones(5, 5, dtype=torch.float64))
    torch.testing.assert_close(torch.einsum("ab,abc->bc", pairs, chain), pairs)
    assert pairs.sum().item() == pytest.approx(1) and (pairs > 0).all()


def test_best_losses_of_chains_that_can_be_worked_out():
    """All tokens equally likely: ln V. A copy of the token before last with error e: its binary entropy."""
    assert best_losses(draw_chain(6, 0.0, 1), 4) == pytest.approx((math.log(6), math.log(6)))
    error = 0.1
    copy = torch.full((2, 2, 2), error, dtype=torch.float64)
    copy[0, :, 0] = copy[1, :, 1] = 1 - error
    rate = -error * math.log(error) - (1 - error) * math.log(1 - error)
    assert best_losses(copy, 5) == pytest.approx(((math.log(2) + 4 * rate) / 5, math.log(2)))


def test_windows_of_a_chain_have_its_frequencies():
    chain = draw_chain(3, 1.0, 2)
    data = markov(chain, 7, num_train=4000, num_val=5)
    text = torch.cat((data.train.inputs, data.train.targets[:, -1:]), dim=1)
    assert torch.equal(data.train.inputs[:, 1:], data.train.targets[:, :-1])
    triples = text.unfold(1, 3, 1).flatten(0, 1)
    counts = torch.zeros(3, 3, 3).index_put(tuple(triples.T), torch.ones(len(triples)), accumulate=True)
    assert torch.allclose(counts / len(triples), (stationary(chain).unsqueeze(2) * chain).float(), atol=0.01)
    first = torch.zeros(3, 3).index_put(tuple(text[:, :2].T), torch.ones(len(text)), accumulate=True)
    assert torch.allclose(first / len(text), stationary(chain).float(), atol=0.025)


def test_more_windows_keep_those_there_were_and_parts_differ():
    chain = draw_chain(4, 1.0, 2)
    few, many = markov(chain, 6, 8, 8, 8, seed=1), markov(chain, 6, 20, 30, 9, seed=1)
    for name, part in few.parts.items():
        assert part.size == 8 and torch.equal(part.inputs, many.parts[name].inputs[:8])
        assert torch.equal(part.targets, many.parts[name].targets[:8])
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not torch.equal(few.parts[one].inputs, few.parts[other].inputs)
    assert not torch.equal(few.train.inputs, markov(chain, 6, 8, 8, seed=2).train.inputs)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: draw_chain(1, 1.0, 0), "vocabulary = 1"),
        (lambda: draw_chain(3, math.nan, 0), "sharpness = nan"),
        (lambda: markov(draw_chain(3, 1.0, 0), 0), "block: found 0, expected at least 1"),
        (lambda: markov(draw_chain(3, 1.0, 0), 2, num_val=0), "num_val: found 0"),
        (lambda: markov(draw_chain(3, 1.0, 0), 2, num_test=0), "num_test: found 0"),
    ],
)
def test_impossible_chains_are_refused(call, said):
    with pytest.raises(DatasetError) as error:
        call()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_static_host_stays_above_its_bound_and_a_grown_one_gets_below_it():
    """What a model can reach that sees one token is known; growing attention lets the host see more."""
    engine = esper.make("synthetic_tokens", 4, backend="eager")
    both, one = best_losses(draw_chain(4, 3.0, 0), 12)
    losses = []
    for policy in (wait(engine.codec), grow(engine.codec, "attention")):
        state = engine.init(0)
        for _ in range(19):
            state, event = engine.step(state, policy(engine.mask(state)))
        losses.append(state.signals.val_loss)
    assert (losses[0] > one).all() and (losses[0] < one + 0.15).all()
    assert (losses[1] < one - 0.02).all() and (losses[1] > both).all()
    assert event.evaluation.class_accuracy.shape == (4, 4) and (event.evaluation.class_accuracy > 0).all()


def test_guessing_among_equals_has_their_number_as_perplexity_and_its_binary_logarithm_as_bits():
    loss = torch.tensor([1.0, 8.0, 96.0], dtype=torch.float64).log()
    assert perplexity(loss).tolist() == pytest.approx([1, 8, 96])
    assert bits(loss).tolist() == pytest.approx([0, 3, math.log2(96)])
