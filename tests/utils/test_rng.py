"""esper.utils.rng against published answers, jax.random, a second rendering in Python integers, and its laws.

jax_vectors.json was made with jax 0.10.2 on a CPU (jax is not imported here) by:

    import json, sys, jax, jax.numpy as jnp, numpy as np
    assert jax.config.jax_threefry_partitionable
    SEEDS = [0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1]
    SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 5)]
    DATA = [0, 1, 7, 2**31, 2**32 - 1]
    SPANS = [(0.0, 1.0), (-0.5, 0.5), (-1.0, 3.0), (0.1, 0.7)]
    flat = lambda a, t: [t(v) for v in np.asarray(a).ravel()]
    random, cases = jax.random, []
    for seed in SEEDS:
        k = random.PRNGKey(np.uint32(seed))
        uniforms = lambda s: [{"low": a, "high": b, "values": flat(random.uniform(k, s, jnp.float32, a, b), float)}
                              for a, b in SPANS]
        cases.append({
            "seed": seed, "key": flat(k, int),
            "fold_in": [{"data": d, "key": flat(random.fold_in(k, np.uint32(d)), int)} for d in DATA],
            "split": [{"num": n, "keys": flat(random.split(k, n), int)} for n in (1, 2, 5)],
            "draws": [{"shape": list(s), "bits": flat(random.bits(k, s, jnp.uint32), int), "uniform": uniforms(s),
                       "normal": flat(random.normal(k, s, jnp.float32), float)} for s in SHAPES]})
    jax.config.update("jax_enable_x64", True)  # for seeds of more than 32 bits: their keys only
    for seed in (2**32, 2**63 + 12345, 2**64 - 1):
        k = random.PRNGKey(np.uint64(seed))
        cases.append({"seed": seed, "key": flat(k, int), "fold_in": [], "split": [], "draws": []})
    text = json.dumps({"jax": jax.__version__, "cases": cases}, separators=(",", ":"))
    text = text.replace('{"seed"', '\\n{"seed"').replace('{"shape"', '\\n {"shape"')
    open(sys.argv[1], "w").write(text + "\\n")
"""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.utils import rng
from esper.utils.threefry import FEW, MANY

CASES = json.loads((Path(__file__).parent / "jax_vectors.json").read_text())["cases"]
WORD = st.integers(0, 2**32 - 1)
SEED = st.integers(0, 2**64 - 1)
SHAPE = st.lists(st.integers(0, 4), max_size=3).map(tuple)
DRAWS = {
    "bits": lambda k: rng.bits(k, (3, 2)),
    "split": lambda k: rng.split(k, 3),
    "fold_in": lambda k: rng.fold_in(k, 5, -1),
    "uniform": lambda k: rng.uniform(k, (4,), -1.0, 2.0),
    "uniform64": lambda k: rng.uniform(k, (4,), -1.0, 2.0, torch.float64),
    "normal": lambda k: rng.normal(k, (2, 3)),
    "permutation": lambda k: rng.permutation(k, 7),
    "categorical": lambda k: rng.categorical(k, torch.tensor([0.0, 1.0, -math.inf, 0.5]).expand(*k.shape[:-1], 4)),
}

examples = settings(max_examples=50, deadline=None)


def threefry_by_integers(key, counter):
    """The specification once more, read off the paper, in Python integers."""

    def add(a, b):
        return (a + b) % 2**32

    keys = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x, y = add(counter[0], keys[0]), add(counter[1], keys[1])
    for number, turn in enumerate([13, 15, 26, 6, 17, 29, 16, 24] * 2 + [13, 15, 26, 6], start=1):
        x = add(x, y)
        y = (y * 2**turn % 2**32 + y // 2 ** (32 - turn)) ^ x
        if number % 4 == 0:
            step = number // 4
            x, y = add(x, keys[step % 3]), add(add(y, keys[(step + 1) % 3]), step)
    return [x, y]


# Published answers


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_random123_known_answers(key, counter, answer):
    assert tuple(rng.threefry2x32(torch.tensor(key), torch.tensor(counter)).tolist()) == answer
    assert tuple(threefry_by_integers(key, counter)) == answer


# jax.random


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["seed"]))
def test_same_as_jax(case):
    k = rng.key(case["seed"])
    assert k.tolist() == case["key"]
    for fold in case["fold_in"]:
        assert rng.fold_in(k, fold["data"]).tolist() == fold["key"]
        assert rng.fold_in(k, torch.tensor(fold["data"])).tolist() == fold["key"]
    for split in case["split"]:
        keys = rng.split(k, split["num"])
        assert keys.shape == (split["num"], 2)
        assert keys.flatten().tolist() == split["keys"]
    for draw in case["draws"]:
        shape = tuple(draw["shape"])
        words = rng.bits(k, shape)
        assert words.shape == shape
        assert words.flatten().tolist() == draw["bits"]
        for span in draw["uniform"]:
            # a compiler that fuses the multiply and the add rounds once where we round twice
            last_bit = 0.0 if (span["low"], span["high"]) == (0.0, 1.0) else 2.4e-7
            ours, theirs = rng.uniform(k, shape, span["low"], span["high"]), torch.tensor(span["values"]).reshape(shape)
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=last_bit)
        theirs = torch.tensor(draw["normal"]).reshape(shape)
        torch.testing.assert_close(rng.normal(k, shape), theirs, rtol=1e-6, atol=1e-6)


# A second rendering


@examples
@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=8))
def test_block_by_integers(rows):
    table = torch.tensor(rows)
    expected = [threefry_by_integers(row[:2], row[2:]) for row in rows]
    assert rng.threefry2x32(table[:, :2], table[:, 2:]).tolist() == expected


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 300])
def test_blocks_of_every_size_by_integers(rows):
    """Up to ``FEW`` blocks are one long integer, and more are arrays of 32 bits; words at both ends are among them."""
    ends = torch.tensor([[2**32 - 1] * 4, [0] * 4, [0, 2**32 - 1, 2**31, 1]])
    table = torch.cat((ends, rng.bits(rng.key(5), (300, 4))))[:rows]
    expected = [threefry_by_integers(row[:2], row[2:]) for row in table.tolist()]
    assert rng.threefry2x32(table[:, :2], table[:, 2:]).tolist() == expected


def test_many_blocks_by_integers():
    """Beyond ``MANY`` blocks they are tensors; the same draw, shorter, is of arrays."""
    words = rng.bits(rng.key(6), (MANY + 1,))
    assert torch.equal(words[:MANY], rng.bits(rng.key(6), (MANY,)))
    for index in (0, 1, MANY - 1, MANY):
        first, second = threefry_by_integers((0, 6), (0, index))
        assert int(words[index]) == first ^ second


@examples
@given(WORD, WORD, SHAPE)
def test_bits_by_integers(k0, k1, shape):
    expected = []
    for index in range(math.prod(shape)):
        first, second = threefry_by_integers((k0, k1), (0, index))
        expected.append(first ^ second)
    words = rng.bits(torch.tensor([k0, k1]), shape)
    assert words.shape == shape
    assert words.dtype == torch.int64
    assert words.flatten().tolist() == expected


@pytest.mark.parametrize("n", [1, 7, 100])
def test_single_words_are_those_of_the_draw(n):
    keys, counters = rng.fold_in(rng.key(3), torch.arange(4)), torch.arange(n).flip(0)
    whole = rng.bits(keys, (n,))
    assert torch.equal(rng.bits_at(keys.unsqueeze(1), counters), whole.flip(1))
    far = 2**32 + 5
    wide = rng.threefry2x32(keys, torch.tensor([1, 5]))
    assert torch.equal(rng.bits_at(keys, torch.full((4,), far)), wide[:, 0] ^ wide[:, 1])


def test_block_broadcasts_and_leaves_its_arguments():
    key, counter = rng.split(rng.key(1), 3)[:, None], rng.split(rng.key(2), 4)
    before = key.clone(), counter.clone()
    words = rng.threefry2x32(key, counter)
    assert words.shape == (3, 4, 2)
    assert torch.equal(words[2, 1], rng.threefry2x32(key[2, 0], counter[1]))
    assert torch.equal(key, before[0])
    assert torch.equal(counter, before[1])


# Keys


@examples
@given(SEED)
def test_key_holds_the_seed(seed):
    high, low = rng.key(seed).tolist()
    assert high * 2**32 + low == seed


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_key_refuses(seed):
    with pytest.raises(ValueError, match=str(seed)):
        rng.key(seed)


@examples
@given(SEED, st.lists(st.integers(-(2**40), 2**40), max_size=4))
def test_fold_in_several_is_one_after_another(seed, data):
    k = one_by_one = rng.key(seed)
    for datum in data:
        one_by_one = rng.fold_in(one_by_one, datum)
    assert torch.equal(rng.fold_in(k, *data), one_by_one)
    assert torch.equal(rng.fold_in(k, *map(torch.tensor, data)), one_by_one)
    assert torch.equal(rng.fold_in(k, *(datum % 2**32 for datum in data)), one_by_one)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_fold_in_broadcasts(dtype):
    k, data = rng.key(9), torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    keys = rng.fold_in(k, data)
    assert keys.tolist() == [rng.fold_in(k, int(datum)).tolist() for datum in data]
    again = rng.fold_in(keys, data, 3)
    assert again.tolist() == [rng.fold_in(row, int(datum), 3).tolist() for row, datum in zip(keys, data, strict=True)]
    assert rng.fold_in(keys[:, None], data, 4).shape == (5, 5, 2)


def test_fold_in_separates():
    keys = rng.fold_in(rng.key(0), torch.arange(1000)[:, None], torch.arange(20))
    assert len({tuple(pair) for pair in keys.flatten(0, 1).tolist()}) == 20_000


def test_split_starts_alike():
    k = rng.key(12)
    assert torch.equal(rng.split(k, 5)[:2], rng.split(k))
    assert rng.split(k, 0).shape == (0, 2)
    assert torch.equal(rng.split(k, 5), rng.fold_in(k, torch.arange(5)))


# Draws


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_batched_keys_draw_row_by_row(draw):
    keys = rng.split(rng.split(rng.key(77), 2), 3)
    together = draw(keys)
    assert together.shape[:2] == (2, 3)
    for row in range(2):
        for column in range(3):
            assert torch.equal(together[row, column], draw(keys[row, column]))
    assert torch.equal(torch.func.vmap(torch.func.vmap(draw))(keys), together)
    assert draw(keys[:0]).shape == (0, *together.shape[1:])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_compiled_equals_eager(draw):
    torch.compiler.reset()
    compiled = torch.compile(draw, backend="eager", fullgraph=True)
    for keys in (rng.key(5), rng.split(rng.key(6), 4), rng.split(rng.key(7), 3)):
        before = keys.clone()
        assert torch.equal(compiled(keys), draw(keys))
        assert torch.equal(keys, before)


def test_compiled_with_changing_integers():
    torch.compiler.reset()

    def step(k, epoch, n, low):
        return rng.uniform(rng.fold_in(k, epoch), (n,), low, 1.0)

    compiled, k = torch.compile(step, backend="eager", fullgraph=True), rng.key(8)
    for epoch, n, low in ((0, 3, 0.0), (-1, 4, -0.5), (2**32 + 2, 5, -0.25), (7, 0, 0.5)):
        assert torch.equal(compiled(k, epoch, n, low), step(k, epoch, n, low))


@examples
@given(SEED, st.integers(0, 9), st.integers(0, 9))
def test_longer_draws_start_alike(seed, less, more):
    k = rng.key(seed)
    assert torch.equal(rng.normal(k, (less + more,))[:less], rng.normal(k, (less,)))


def test_bits_are_balanced():
    words = rng.bits(rng.key(3), (20_000,))
    ones = ((words[:, None] >> torch.arange(32)) & 1).double().mean(0)
    assert bool(((ones - 0.5).abs() < 5 * 0.5 / math.sqrt(20_000)).all())


def test_uniform_moments():
    draw = rng.uniform(rng.key(4), (40_000,), 2.0, 5.0, torch.float64)
    assert abs(draw.mean().item() - 3.5) < 5 * math.sqrt(9 / 12 / 40_000)
    assert abs(draw.var().item() - 9 / 12) < 0.02
    assert 2.0 <= draw.min().item() < 2.001
    assert 4.999 < draw.max().item() < 5.0


@examples
@given(SEED, st.floats(-1e6, 1e6, width=32), st.floats(2**-20, 1e6, width=32), st.sampled_from(rng._DTYPES))
def test_uniform_range(seed, low, width, dtype):
    high = float(torch.tensor(low + width, dtype=dtype))
    if low < high:
        draw = rng.uniform(rng.key(seed), (64,), low, high, dtype)
        assert draw.dtype == dtype
        assert low <= draw.min().item() <= draw.max().item() < high


@pytest.mark.parametrize("dtype", rng._DTYPES)
def test_uniform_stays_below_high(monkeypatch, dtype):
    """The largest word scaled to [1000, 1001) rounds up to 1001 in float32."""
    monkeypatch.setattr(rng, "bits", lambda key, shape: torch.full(shape, 2**32 - 1))
    draw = rng.uniform(rng.key(0), (2,), 1000.0, 1001.0, dtype)
    assert bool((draw < 1001.0).all())
    assert bool((draw > 1000.999).all())


@examples
@given(SEED, SHAPE)
def test_float64_draws_are_the_float32_draws(seed, shape):
    k = rng.key(seed)
    wide = rng.uniform(k, shape, dtype=torch.float64)
    assert wide.dtype == torch.float64
    assert torch.equal(wide, rng.uniform(k, shape).double())
    assert torch.equal(rng.uniform(k, shape, -3.0, 4.0, torch.float64), wide * 7.0 - 3.0)
    wide = rng.normal(k, shape, torch.float64)
    assert wide.dtype == torch.float64
    assert torch.equal(wide.float(), rng.normal(k, shape))


@pytest.mark.parametrize("dtype", rng._DTYPES)
def test_normal_moments(dtype):
    draw = rng.normal(rng.key(6), (40_000,), dtype)
    assert draw.dtype == dtype
    error = 1 / math.sqrt(40_000)
    for power, moment, deviation in ((1, 0, 1), (2, 1, math.sqrt(2)), (3, 0, math.sqrt(15)), (4, 3, math.sqrt(96))):
        assert abs((draw.double() ** power).mean().item() - moment) < 5 * deviation * error


@pytest.mark.parametrize("word", [0, 511, 512, 2**31, 2**32 - 1])
@pytest.mark.parametrize("dtype", rng._DTYPES)
def test_normal_is_finite(monkeypatch, word, dtype):
    monkeypatch.setattr(rng, "bits", lambda key, shape: torch.full(shape, word))
    assert rng.normal(rng.key(0), (1,), dtype).abs().item() < 5.5


@examples
@given(SEED, st.integers(0, 40))
def test_permutation_is_one(seed, n):
    order = rng.permutation(rng.key(seed), n)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))


def test_permutations_are_uniform():
    """24 orders of 4, 24 000 draws: chi-square with 23 degrees of freedom, 0.999 quantile 49.7."""
    orders = rng.permutation(rng.split(rng.key(10), 24_000), 4)
    counts = torch.bincount(orders @ torch.tensor([64, 16, 4, 1]), minlength=256)
    counts = counts[counts > 0].double()
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum().item() < 49.7


@pytest.mark.parametrize("dtype", rng._DTYPES)
def test_categorical_frequencies(dtype):
    """Chi-square over five categories, 4 degrees of freedom, 0.999 quantile 18.5."""
    logits = torch.tensor([0.3, -math.inf, 1.7, -2.0, 0.0, -math.inf, 0.9], dtype=dtype)
    drawn = rng.categorical(rng.split(rng.key(13), 20_000), logits.expand(20_000, 7))
    counts, expected = torch.bincount(drawn, minlength=7).double(), 20_000 * torch.softmax(logits.double(), 0)
    assert counts[[1, 5]].tolist() == [0.0, 0.0]
    live = expected > 0
    assert ((counts - expected)[live] ** 2 / expected[live]).sum().item() < 18.5


@examples
@given(SEED, st.lists(st.booleans(), min_size=1, max_size=6), st.floats(-(2.0**100), 2.0**100, width=32))
def test_categorical_never_picks_minus_infinity(seed, open_, level):
    open_ = [*open_, True]
    logits = torch.tensor([level if free else -math.inf for free in open_])
    drawn = rng.categorical(rng.split(rng.key(seed), 8), logits.expand(8, -1))
    assert all(open_[index] for index in drawn.tolist())


@pytest.mark.parametrize("word", [0, 2**32 - 1])
@pytest.mark.parametrize("dtype", [*rng._DTYPES, torch.bfloat16])
def test_categorical_at_the_ends(monkeypatch, word, dtype):
    monkeypatch.setattr(rng, "bits", lambda key, shape: torch.full(shape, word))
    assert rng.categorical(rng.key(0), torch.tensor([-math.inf, 0.0, -math.inf], dtype=dtype)).item() == 1


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: rng.bits(k.int()), "int32"),
        (lambda k: rng.bits(k[:1]), r"\(1,\)"),
        (lambda k: rng.threefry2x32(k, torch.zeros(3, dtype=torch.int64)), "counter"),
        (lambda k: rng.fold_in(k, torch.tensor(1.0)), "float32"),
        (lambda k: rng.split(k, -1), "-1"),
        (lambda k: rng.permutation(k, -2), "-2"),
        (lambda k: rng.uniform(k, (1,), 1.0, 1.0), "low=1.0"),
        (lambda k: rng.uniform(k, (1,), math.nan, 1.0), "nan"),
        (lambda k: rng.uniform(k, (1,), 0.0, math.inf), "inf"),
        (lambda k: rng.uniform(k, (1,), dtype=torch.float16), "float16"),
        (lambda k: rng.normal(k, (1,), torch.int64), "int64"),
        (lambda k: rng.categorical(k, torch.zeros(2, 3)), r"\(2, 3\)"),
        (lambda k: rng.categorical(k, torch.zeros(0)), r"\(0,\)"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(rng.key(0))
