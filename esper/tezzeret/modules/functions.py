"""Operations of a graph by the functions of torch that people call: what watches functions knows these.

Arguments stand in the same order. An operation that is not here, or writes in place, is called as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina import layers


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:
    """Layer norm."""
    del cudnn
    return F.layer_norm(x, tuple(shape), weight, bias, eps)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention, written out: the fused kernels know one network."""
    del dropout_p
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ value


def as_is(x: Tensor, *rest: Any) -> Tensor:
    """Dropout in inference."""
    del rest
    return x


def new_zeros(x: Tensor, shape: Sequence[int], **rest: Any) -> Tensor:
    """Zeros like a tensor's numbers; of these nothing is read."""
    del rest
    return torch.zeros(*shape, dtype=x.dtype, device=x.device)


def index(x: Tensor, places: Sequence[Tensor | None]) -> Tensor:
    """Numbers at places along some axes."""
    return x[tuple(slice(None) if place is None else place for place in places)]


def largest(x: Tensor, *rest: Any) -> Any:
    """The largest of the last dimension, of which only the numbers are read; otherwise as torch has it."""
    if len(rest) == 1 and isinstance(rest[0], int) and rest[0] in (-1, x.dim() - 1):
        return layers.largest(x), None
    return torch.max(x, *rest)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "new_zeros": new_zeros,
    "index": index,
    "max": largest,
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(("dropout", "feature_dropout"), as_is),
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), torch.reshape),
    "expand": torch.Tensor.expand,
    "unflatten": torch.Tensor.unflatten,
    "view_as": torch.Tensor.view_as,
    **{name: getattr(F, name) for name in ("linear", "gelu", "silu", "conv2d", "max_pool2d", "adaptive_avg_pool2d")},
    **{
        name: getattr(torch, name)
        for name in ["add", "sub", "mul", "div", "lerp", "relu", "tanh", "sigmoid", "softmax", "matmul", "cat", "mean"]
    },
    **{name: getattr(torch, name) for name in ["flatten", "transpose", "permute", "unsqueeze", "squeeze", "select"]},
    **{name: getattr(torch, name) for name in ["square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "abs", "neg"]},
}
"""By the operation's name."""
