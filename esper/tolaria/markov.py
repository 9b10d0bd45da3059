"""Token sequences whose best possible loss is known: a random Markov chain of second order.

The next token depends on the last two. A model that sees only the last one cannot get below the entropy given one
token; one that sees two can reach the entropy rate. Both are sums over the stationary distribution.
"""

import torch
from torch import Tensor

from esper.tolaria.data import Dataset, DatasetError, Part, validate
from esper.utils import rng

_CHAIN, _TRAIN, _VALIDATION, _TEST = range(4)  # streams folded into the key
_START = 0xFFFF  # the draw of a sequence's first two tokens; later draws are counted from 0

SPLIT = "every part drawn on its own"


def draw_chain(vocabulary: int, sharpness: float, seed: int) -> Tensor:
    """Transition probabilities, float64 [V, V, V]: entry [a, b, c] is P(c | a, then b).

    Args:
      vocabulary: tokens V, >= 2.
      sharpness: standard deviation of the logits, >= 0; at 0 all tokens are equally likely.
      seed: which chain.

    Raises:
      DatasetError: a number out of range.
    """
    if vocabulary < 2 or not sharpness >= 0:
        raise DatasetError(
            f"dataset 'markov': vocabulary = {vocabulary}, sharpness = {sharpness}: expected at least 2 and 0"
        )
    logits = rng.normal(rng.fold_in(rng.key(seed), _CHAIN), (vocabulary,) * 3, torch.float64)
    return torch.softmax(sharpness * logits, dim=-1)


def stationary(chain: Tensor) -> Tensor:
    """Long-run frequency of each pair, float64 [V, V]: the p with sum_a p[a, b] chain[a, b, c] = p[b, c]."""
    size = chain.shape[0]
    pairs = torch.eye(size, dtype=chain.dtype)
    move = torch.einsum("abc,bd->abdc", chain, pairs).reshape(size**2, size**2)  # (a, b) -> (b, c)
    balance = move.T - torch.eye(size**2, dtype=chain.dtype)
    balance[-1] = 1  # one equation follows from the others; the sum takes its place
    target = torch.zeros(size**2, dtype=chain.dtype)
    target[-1] = 1
    return torch.linalg.solve(balance, target).reshape(size, size)


def _entropy(weights: Tensor, rows: Tensor) -> float:
    """Mean entropy of the distributions in ``rows`` [..., V], weighted by ``weights`` [...]; nats."""
    return float((weights * torch.special.entr(rows).sum(-1)).sum())


def best_losses(chain: Tensor, block: int) -> tuple[float, float]:
    """Least expected cross-entropy on windows of ``block`` tokens, nats.

    Returns:
      of a model that sees all tokens of the window so far (at the first position that is one), and of a model that
      sees the last token alone.
    """
    pairs = stationary(chain)
    single = pairs.sum(0)
    one = _entropy(single, torch.einsum("ab,abc->bc", pairs, chain) / single.unsqueeze(1))
    two = _entropy(pairs, chain)
    return (one + (block - 1) * two) / block, one


def markov(
    chain: Tensor, block: int, num_train: int = 512, num_val: int = 256, num_test: int = 256, seed: int = 0
) -> Dataset:
    """Windows of a chain in its stationary state, independent of each other.

    Args:
      chain: from ``draw_chain``.
      block: positions T of a window, >= 1.
      num_train, num_val, num_test: windows, >= 1. Asking for more keeps those there were.
      seed: of the draws.

    Raises:
      DatasetError: a number out of range.
    """
    counts = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
    for field, value in ({"block": block} | counts).items():
        if value < 1:
            raise DatasetError(f"dataset 'markov': {field}: found {value}, expected at least 1")
    key, first = rng.key(seed), stationary(chain).clamp(min=0).log().flatten()

    def part(stream: int, size: int) -> Part:
        keys = rng.fold_in(rng.fold_in(key, stream), torch.arange(size))
        start = rng.categorical(rng.fold_in(keys, _START), first.expand(size, -1))
        tokens = [start // chain.shape[0], start % chain.shape[0]]
        for time in range(block - 1):
            tokens.append(rng.categorical(rng.fold_in(keys, time), chain[tokens[-2], tokens[-1]].log()))
        windows = torch.stack(tokens, dim=1)
        return Part(windows[:, :-1], windows[:, 1:])

    streams = zip((_TRAIN, _VALIDATION, _TEST), counts.values(), strict=True)
    train, validation, test = (part(stream, size) for stream, size in streams)
    return validate(Dataset("markov", train, validation, test, chain.shape[0], SPLIT))
