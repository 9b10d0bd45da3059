"""The transformer host: token and position embeddings, pre-norm causal blocks, and a head tied to the embedding.

A block is x + attention(LN(x)), then x + mlp(LN(x)) with exact GELU and an expansion of 4, biases everywhere, no
dropout; then a last LN and logits = LN(x) E^T with the embedding E (Press & Wolf 2017). An embedding drawn from N(0, 1)
would give tied logits of standard deviation sqrt(D) and a first loss far above ln V; here every logit starts with
standard deviation LOGIT_STD, so the first loss is close to ln V + LOGIT_STD**2 / 2.
"""

from functools import partial

from torch import Tensor
from torch.nn import functional as F

from esper.kasmina.host import Host, Tie, plain_block
from esper.kasmina.layers import causal_attention, embed, layer_norm, linear
from esper.kasmina.layout import Param, Params, constant, fan_in_uniform
from esper.kasmina.site import token_site
from esper.leyline.config import ConfigError

LOGIT_STD = 0.4
"""Standard deviation of the logits at the start; at D = 384 the embedding's is then 0.02, as usual."""

EXPANSION = 4
"""Hidden units of a block's MLP per channel."""


def affine(name: str, out: int, into: int) -> tuple[Param, Param]:
    """Weight [out, into], drawn by fan-in, and bias [out], 0, of a linear layer."""
    return fan_in_uniform(f"{name}.weight", (out, into), into), constant(f"{name}.bias", (out,), 0.0)


def norm(name: str, width: int) -> tuple[Param, Param]:
    """Weight 1 and bias 0 of a layer norm."""
    return constant(f"{name}.weight", (width,), 1.0), constant(f"{name}.bias", (width,), 0.0)


def apply_affine(params: Params, name: str, x: Tensor) -> Tensor:
    """The linear layer of ``affine``."""
    return linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def apply_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """The layer norm of ``norm``."""
    return layer_norm(x, params[f"{name}.weight"], params[f"{name}.bias"])


def embedded(params: Params, tokens: Tensor) -> Tensor:
    """Token plus position: int64 [n, B, T] -> [n, B, T, D]."""
    return embed(tokens, params["token"]) + params["position"].unsqueeze(1)


def heads_of(width: int) -> int:
    """Attention heads of a seed: the first of 4, 2, 1 that divides the width."""
    return next(heads for heads in (4, 2, 1) if width % heads == 0)


def block_params(width: int, prefix: str = "") -> tuple[Param, ...]:
    """Tensors of a block, their names behind a prefix: 12 width^2 + 13 width numbers."""
    return (
        *norm(f"{prefix}norm1", width),
        *affine(f"{prefix}qkv", 3 * width, width),
        *affine(f"{prefix}project", width, width),
        *norm(f"{prefix}norm2", width),
        *affine(f"{prefix}expand", EXPANSION * width, width),
        *affine(f"{prefix}contract", width, EXPANSION * width),
    )


def apply_block(heads: int, params: Params, x: Tensor, prefix: str = "") -> Tensor:
    """A block: x + attention(LN(x)), then x + mlp(LN(x)); x [n, B, T, D]."""
    mixed = causal_attention(apply_affine(params, f"{prefix}qkv", apply_norm(params, f"{prefix}norm1", x)), heads)
    x = x + apply_affine(params, f"{prefix}project", mixed)
    hidden = F.gelu(apply_affine(params, f"{prefix}expand", apply_norm(params, f"{prefix}norm2", x)))
    return x + apply_affine(params, f"{prefix}contract", hidden)


def block_flops(length: int, width: int) -> int:
    """Multiply-adds of a block per sequence."""
    return length * (4 + 2 * EXPANSION) * width**2 + 2 * length**2 * width


def _head(params: Params, x: Tensor) -> Tensor:
    return linear(apply_norm(params, "norm", x), params["token"])


def transformer_host(vocabulary: int, block: int, num_layers: int = 2, num_heads: int = 4, width: int = 64) -> Host:
    """Build the transformer host.

    Block 0 embeds, block i is the i-th of the transformer, the last is the head. A slot may follow every block but the
    head; behind block 0 it sees the embeddings, so a host without blocks can be grown into a transformer.

    Args:
      vocabulary: tokens V, >= 2.
      block: positions T of a sample, >= 1.
      num_layers: blocks, >= 0.
      num_heads: attention heads; divides ``width``.
      width: channels D.

    Raises:
      ConfigError: a value out of range.
    """
    if vocabulary < 2 or block < 1 or num_layers < 0:
        raise ConfigError(
            f"transformer_host vocabulary = {vocabulary}, block = {block}, num_layers = {num_layers}: "
            "expected at least 2 tokens, 1 position and 0 layers"
        )
    if width < 1 or num_heads < 1 or width % num_heads:
        raise ConfigError(
            f"transformer_host num_heads = {num_heads}, width = {width}: expected heads that divide the width"
        )
    site, scale = token_site(block, width), LOGIT_STD * width**-0.5
    token = Param("token", (vocabulary, width), "normal", scale)
    embedding = (token, Param("position", (block, width), "normal", scale))
    layer, cost = block_params(width), block_flops(block, width)
    blocks = (
        plain_block(embedding, embedded, site, 0),
        *(plain_block(layer, partial(apply_block, num_heads), site, cost) for _ in range(num_layers)),
        plain_block(norm("norm", width), _head, None, block * width * vocabulary, (Tie(0, token),)),
    )
    return Host(f"transformer {num_layers}x{width}", (block,), vocabulary, blocks, takes_tokens=True)
