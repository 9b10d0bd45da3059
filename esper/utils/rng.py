"""Random numbers as a function: Threefry-2x32 with 20 rounds, in ordinary integer tensor operations.

A key is data, an int64 tensor [..., 2] of two words in [0, 2**32); there is no hidden state. Every draw is a pure
function of its key, so runs are reproducible, keys batch (a batch of keys draws row by row what each key draws
alone, the drawn shape standing AFTER the key's batch shape), and everything traces under
torch.compile(fullgraph=True) and torch.func.vmap. Use a key for one draw; derive new ones by `fold_in` or `split`.

The words live in int64 and are masked, so nothing rests on overflow, and the bits are the same on every device.
Whether a key's words lie in [0, 2**32) is not checked (that would wait for the device): it is the caller's promise,
kept by `key`, `fold_in` and `split`. A key of another dtype or last size raises ValueError.

Inductor repeats an expression wherever it is used until it grows past realize_opcount_threshold (30) and compiles a
draw slowly (about 40 s on two cores); torch.compile(options={"realize_opcount_threshold": 15}) takes about 7 s.

Sources: the block function is that of J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random
numbers: as easy as 1, 2, 3" (SC'11), and its known answers those of the authors' Random123 library. How keys are
made from seeds, folded and split, and how counters become bits and uniforms, follows the documented behaviour of
jax.random with its default implementation (threefry2x32, jax_threefry_partitionable=True), bit for bit.
"""

import math
from numbers import Integral

import torch
from torch import Tensor

from esper.utils.documents import shown
from esper.utils.threefry import MASK, block

_MANTISSA = 2.0**-23
GAMMA_TRIALS = 16
"""Proposals of ``gamma``."""
_DTYPES = (torch.float32, torch.float64)


def key(seed: int) -> Tensor:
    """The key of a seed: int64 [2], the seed's high and low 32-bit words, on the CPU.

    An integer, 0 <= seed < 2**64, else ValueError. Same as jax.random.PRNGKey of the seed.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be an integer in [0, 2**64), got {shown(seed)}")
    high, low = divmod(int(seed), 2**32)
    return torch.tensor([high, low], dtype=torch.int64)


def threefry2x32(key: Tensor, counter: Tensor) -> Tensor:
    """The block function: key [..., 2] and counter [..., 2], broadcast together, to two random words [..., 2].

    All are int64 holding words in [0, 2**32). For one key it is a bijection of the counters. ValueError when either
    is not int64 with last size 2.
    """
    return torch.stack(block(*_words(key, "key"), *_words(counter, "counter")), dim=-1)


def fold_in(key: Tensor, *data: int | Tensor) -> Tensor:
    """Derive keys by data: key [..., 2], each datum an int or integer tensor, to keys [..., 2].

    A datum tensor broadcasts with the key's batch shape: key [2] with arange(E), or key [E, 2] with [E], gives
    [E, 2]. Data count modulo 2**32 (so -1 is 2**32 - 1). Several are folded one after another:
    fold_in(k, a, b) == fold_in(fold_in(k, a), b), and fold_in(k) == k. For one key, different data (mod 2**32) give
    different keys. Same bits as jax.random.fold_in. ValueError for a datum tensor that is not integer.
    """
    k0, k1 = _words(key, "key")
    for datum in data:
        if not isinstance(datum, Tensor):
            datum = k0.new_full((), datum % 2**32)
        elif datum.is_floating_point() or datum.is_complex():
            raise ValueError(f"fold_in takes integers, got a tensor of {datum.dtype}")
        word = datum.to(torch.int64) & MASK
        k0, k1 = block(k0, k1, torch.zeros_like(word), word)
    return torch.stack((k0, k1), dim=-1)


def split(key: Tensor, num: int = 2) -> Tensor:
    """`num` new keys of each key: [..., 2] to [..., num, 2].

    Key i depends on i alone, not on num: split(k, 5)[:2] == split(k, 2). Same bits as jax.random.split.
    ValueError when num < 0.
    """
    if num < 0:
        raise ValueError(f"num must be at least 0, got {num}")
    return torch.stack(_draw(key, (num,)), dim=-1)


def bits(key: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Random words in [0, 2**32): key [..., 2] to int64 [..., *shape].

    Element i (row-major) depends on i alone: a draw of n words starts with the draw of m < n. Same bits as
    jax.random.bits(key, shape, uint32).
    """
    x0, x1 = _draw(key, shape)
    return x0.bitwise_xor_(x1)


def bits_at(key: Tensor, counter: Tensor) -> Tensor:
    """Single words of long draws: key [..., 2] and places, int64 [...] >= 0, to int64 [...].

    Law: bits_at(key, counter) is bits(key, (n,))[..., counter] for every n > counter.
    """
    x0, x1 = block(*_words(key, "key"), counter >> 32, counter & MASK)
    return x0.bitwise_xor_(x1)


def uniform(
    key: Tensor, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in [low, high): key [..., 2] to [..., *shape] of dtype float32 or float64.

    The unit value is the upper 23 bits of one word times 2**-23, in both dtypes: a float64 run sees the float32
    run's draws (exactly, for [0, 1)), and only the scaling to [low, high) is done in float64. low and high are
    rounded to dtype first; a value that rounds up to high is lowered to the number next to it (jax.random.uniform
    returns high there), and bounds that round to one number give that number. In float32 all else is
    jax.random.uniform's, bit for bit on [0, 1), else to the last bit (XLA may fuse the product and the sum).
    ValueError for another dtype, or unless low < high with a finite difference.
    """
    if not 0.0 < high - low < math.inf:
        raise ValueError(f"uniform needs finite low < high, got low={low}, high={high}")
    unit = _unit(key, shape, dtype)
    if low == 0.0 and high == 1.0:
        return unit
    return _between(unit, unit.new_full((), low), unit.new_full((), high))


def uniform_of(words: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``uniform`` of words that were drawn before, each between its own bounds: three times [...], of one dtype."""
    return _between(_unit_of(words, low.dtype), low, high)


def normal(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers: key [..., 2] to [..., *shape] of dtype float32 or float64.

    sqrt(2) * erfinv(u), u float32 uniform in (-1, 1), as jax.random.normal does: never infinite, |x| < 5.5. The
    quantile is taken in float64 in both dtypes, so the float32 draw is the float64 draw rounded, and devices agree
    to rounding; XLA's own float32 quantile is off by up to 6e-6 relative in the tail. ValueError for another dtype.
    """
    return normal_of(bits(key, shape), dtype)


def normal_of(words: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``normal`` of words that were drawn before: [...] to [...]. ValueError for another dtype."""
    _check_dtype(dtype)
    unit = _unit_of(words, torch.float32)
    u = _between(unit, unit.new_full((), 2.0**-24 - 1.0), unit.new_full((), 1.0))
    return u.to(torch.float64).erfinv_().mul_(math.sqrt(2.0)).to(dtype)


def permutation(key: Tensor, n: int) -> Tensor:
    """A random order of 0 .. n-1: key [..., 2] to int64 [..., n], each row a permutation.

    The stable argsort of n random 63-bit numbers (a tie has probability below n**2 / 2**64 and would keep order).
    Not jax.random.permutation's order. ValueError when n < 0.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    x0, x1 = _draw(key, (n,))
    return torch.argsort((x0 << 31).bitwise_or_(x1 >> 1), dim=-1, stable=True)


def categorical(key: Tensor, logits: Tensor) -> Tensor:
    """One index per row with probability softmax(logits): key [..., 2], logits [..., A], to int64 [...].

    Gumbel-max: argmax(logits - log(-log(u))), u in (0, 1) strictly, so the noise is finite and a logit of -inf is
    never chosen. The noise is float32, or float64 for float64 logits, from the same 23 bits. A row must hold a
    finite logit and no NaN or +inf, which is not checked. Not jax.random.categorical's draws. ValueError when the
    key's batch shape is not the logits' or A is 0.
    """
    if logits.ndim == 0 or logits.shape[-1] == 0 or key.shape[:-1] != logits.shape[:-1]:
        raise ValueError(f"a key of shape {tuple(key.shape)} does not fit logits of shape {tuple(logits.shape)}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    u = _unit(key, (logits.shape[-1],), dtype).add_(_MANTISSA / 2)
    return torch.argmax(logits.detach() - u.log_().neg_().log_(), dim=-1)


def gamma(key: Tensor, shape: Tensor) -> Tensor:
    """Gamma-distributed numbers of rate 1: key [..., 2], shape parameters [...] >= 1, to float64 [...].

    The squeeze-free rejection of Marsaglia and Tsang with GAMMA_TRIALS proposals at once, of which the first accepted
    one is taken. A proposal is accepted with probability 0.95 or more, so that none is with probability below 1e-20;
    the last is taken then. ValueError when the key's batch shape is not the parameters'.

    Source: G. Marsaglia and W. W. Tsang, "A simple method for generating gamma variables" (2000).
    """
    if key.shape[:-1] != shape.shape:
        raise ValueError(f"a key of shape {tuple(key.shape)} does not fit parameters of shape {tuple(shape.shape)}")
    unit = _unit(key, (2, GAMMA_TRIALS), torch.float64).add_(_MANTISSA / 2)
    x = torch.erfinv(2 * unit[..., 0, :] - 1) * math.sqrt(2.0)
    d = (shape.to(torch.float64) - 1 / 3).unsqueeze(-1)
    v = (1 + x / (9 * d).sqrt()).pow(3)
    accepted = (v > 0) & (unit[..., 1, :].log() < x.square() / 2 + d * (1 - v + v.clamp(min=1e-300).log()))
    accepted[..., -1] = True
    first = accepted.to(torch.int8).argmax(-1, keepdim=True)
    return (d * v.clamp(min=1e-300)).gather(-1, first).squeeze(-1)


def beta(key: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Beta-distributed numbers: key [..., 2], parameters [...] >= 1, to float64 [...] in (0, 1).

    x / (x + y) of two gamma-distributed numbers. ValueError when the key's batch shape is not the parameters'.
    """
    x, y = gamma(split(key), torch.stack((first, second), dim=-1)).unbind(-1)
    return x / (x + y)


def _words(pair: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The two words of a pair tensor [..., 2], each [...]; ValueError when it is none."""
    if pair.ndim == 0 or pair.shape[-1] != 2 or pair.dtype != torch.int64:
        raise ValueError(f"{name} must be int64 [..., 2], got {pair.dtype} of shape {tuple(pair.shape)}")
    return pair[..., 0], pair[..., 1]


def _draw(key: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Both words of the blocks at counters 0 .. prod(shape)-1 (64-bit, row-major): two tensors [..., *shape]."""
    ones = (1,) * len(shape)
    k0, k1 = (word.reshape((*word.shape, *ones)) for word in _words(key, "key"))
    index = torch.arange(math.prod(shape), dtype=torch.int64, device=key.device).reshape(shape)
    return block(k0, k1, index >> 32, index & MASK)


def _unit(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Multiples of 2**-23 in [0, 1), exact in either dtype: [..., *shape], a fresh tensor."""
    _check_dtype(dtype)
    return _unit_of(bits(key, shape), dtype)


def _unit_of(words: Tensor, dtype: torch.dtype) -> Tensor:
    return (words >> 9).to(dtype).mul_(_MANTISSA)


def _between(unit: Tensor, floor: Tensor, ceiling: Tensor) -> Tensor:
    """Unit values, which are written over, as values from floor on and below the ceiling."""
    unit.mul_(ceiling - floor).add_(floor)
    return torch.minimum(unit, torch.nextafter(ceiling, floor))


def _check_dtype(dtype: torch.dtype) -> None:
    """ValueError for a dtype that is not drawn."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
