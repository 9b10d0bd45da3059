"""Blueprints for bypasses that read sequences: small causal transformers, and linear probes.

| factory            | composition, w = width                                                    | from           |
|--------------------|---------------------------------------------------------------------------|----------------|
| transformer_bypass | token + position embedding; blocks; LN; linear                            | tokens         |
| transformer_bypass | linear(N(x)); blocks; LN; linear                                          | token features |
| token_probe        | linear, of the token's one-hot vector (a table of bigrams) or of features | both           |

Blocks are those of the host (``esper.kasmina.transformer``). N is a layer norm without weights: the scale of the
host's residual stream is the host's affair. Features bring their positions with them, tokens do not. The last layer
is 0, weight and bias; so it is not tied to the embedding, which must not be 0 for the blocks to learn. What a seed
gives acts on logits, or on token features behind its source; from tokens on logits only, whose classes are the
vocabulary.

Parameters, with V tokens, K outputs, T positions, D channels at the source: (V + T) w from tokens, (D + 1) w from
features; 12 w^2 + 13 w a block; 2 w + (w + 1) K at the end. Of a probe V K + K or D K + K.
"""

from torch import Tensor

from esper.kasmina.blueprint import Blueprint, bypassing
from esper.kasmina.layers import embed, standardise
from esper.kasmina.layout import Param, Params, zero_affine
from esper.kasmina.site import Site
from esper.kasmina.transformer import (
    affine,
    apply_affine,
    apply_block,
    apply_norm,
    block_flops,
    block_params,
    embedded,
    heads_of,
    norm,
)
from esper.leyline.config import ConfigError

EMBEDDING_STD = 0.1
"""Standard deviation of token and position embeddings at the start. ``transformer32x1`` grown on ``chars`` from tokens
to logits ends at 48.9 % with 0.02, 50.7 with 0.1, 48.3 with 1 (Adam at 0.005, 3 environments each).
"""


def _fits(source: Site, target: Site) -> bool:
    """Whether a sequence leads to one of equal length, from tokens to their own logits."""
    aims = ("logits",) if source.kind == "tokens" else ("logits", "token")
    known = source.kind in ("tokens", "token") and target.kind in aims and len(target.shape) == 2
    return known and target.time_axis == 0 and source.shape[0] == target.shape[0]


def _reads_tokens(x: Tensor) -> bool:
    return not x.is_floating_point()


def transformer_bypass(width: int = 16, layers: int = 1) -> Blueprint:
    """A causal transformer from tokens, or token features, to logits; ``transformer16x1``.

    Args:
      width: channels w, >= 1.
      layers: blocks, >= 1.

    Raises:
      ConfigError: a value out of range.
    """
    if width < 1 or layers < 1:
        raise ConfigError(f"transformer_bypass width = {width}, layers = {layers}: expected at least 1 of both")

    def params(source: Site, target: Site) -> tuple[Param, ...]:
        blocks = [row for layer in range(layers) for row in block_params(width, f"block{layer}.")]
        end = (*norm("norm", width), *zero_affine("head", target.channels, width))
        if source.kind != "tokens":
            return *affine("in", width, source.channels), *blocks, *end
        shapes = {"token": (target.channels, width), "position": (source.shape[0], width)}
        return *(Param(name, shape, "normal", EMBEDDING_STD) for name, shape in shapes.items()), *blocks, *end

    def apply(params: Params, x: Tensor) -> Tensor:
        h = embedded(params, x) if _reads_tokens(x) else apply_affine(params, "in", standardise(x))
        for layer in range(layers):
            h = apply_block(heads_of(width), params, h, f"block{layer}.")
        return apply_affine(params, "head", apply_norm(params, "norm", h))

    def flops(source: Site, target: Site) -> int:
        length, into = source.shape[0], 0 if source.kind == "tokens" else source.channels
        return length * width * (into + target.channels) + layers * block_flops(length, width)

    def fits(source: Site, target: Site) -> bool:  # what is normalised over one channel is constant
        return _fits(source, target) and (source.kind == "tokens" or source.channels > 1)

    return bypassing(f"transformer{width}x{layers}", fits, params, apply, flops)


def token_probe() -> Blueprint:
    """A linear map of each position by itself to logits. From tokens, every token's row of a table."""

    def size(source: Site, target: Site) -> int:
        return target.channels if source.kind == "tokens" else source.channels

    def apply(params: Params, x: Tensor) -> Tensor:
        if not _reads_tokens(x):
            return apply_affine(params, "head", x)
        return embed(x, params["head.weight"].mT) + params["head.bias"][:, None, None]

    def flops(source: Site, target: Site) -> int:
        return 0 if source.kind == "tokens" else source.shape[0] * source.channels * target.channels

    def params(source: Site, target: Site) -> tuple[Param, ...]:
        return zero_affine("head", target.channels, size(source, target))

    return bypassing("token_probe", _fits, params, apply, flops)


TOKEN_PROBE = token_probe()
TRANSFORMER16, TRANSFORMER32 = transformer_bypass(16, 1), transformer_bypass(32, 1)
TRANSFORMER16X2, TRANSFORMER32X2 = transformer_bypass(16, 2), transformer_bypass(32, 2)

TOKEN_BYPASSES = (TRANSFORMER16, TRANSFORMER16X2, TRANSFORMER32, TRANSFORMER32X2)
"""From tokens, or their features, to logits, by size."""
