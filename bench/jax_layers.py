"""Host, blueprints and layers of one network in JAX, channels last; lifted to many networks by ``vmap``.

Convolutions have two forms, "conv" (the library's) and "im2col" (shifted slices side by side, then a matrix product).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bench.workload import Array, Layout

Params = dict[str, jax.Array]
EPSILON = 1e-5


def named(layout: Layout, rows: Array) -> Params:
    """Flat rows [n, P] -> name -> [n, *shape]; convolution weights as [n, k, k, in, out]."""
    params, start = {}, 0
    for name, shape in layout:
        size = 1
        for side in shape:
            size *= side
        value = rows[:, start : start + size].reshape(len(rows), *shape)
        params[name] = jnp.asarray(value.transpose(0, 3, 4, 2, 1) if len(shape) == 4 else value)
        start += size
    return params


def conv(form: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Same padding: x [B, H, W, C], weight [k, k, C / g, C'] -> [B, H, W, C']."""
    kernel, _, into, out = weight.shape
    if kernel == 1:
        return x @ weight[0, 0]
    if form == "conv":
        groups = x.shape[-1] // into
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, weight, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )
    height, width, pad = x.shape[1], x.shape[2], kernel // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    slices = [padded[:, i : i + height, j : j + width] for i in range(kernel) for j in range(kernel)]
    if into < x.shape[-1]:  # depthwise
        taps = weight.reshape(kernel * kernel, out)
        return sum(part * tap for part, tap in zip(slices, taps, strict=True))
    return jnp.concatenate(slices, -1) @ weight.reshape(kernel * kernel * into, out)


def group_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, groups: int) -> jax.Array:
    """[B, H, W, C]."""
    grouped = x.reshape(*x.shape[:3], groups, -1)
    mean, variance = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
    return ((grouped - mean) * lax.rsqrt(variance + EPSILON)).reshape(x.shape) * weight + bias


def _norm(params: Params, name: str, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    divisors = [groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0]
    groups = next((g for g in divisors if channels // g >= 16), divisors[0])
    return group_norm(x, params[f"{name}.weight"], params[f"{name}.bias"], groups)


def seed(name: str, form: str) -> Callable[[Params, jax.Array], jax.Array]:
    """A blueprint: (params, x [B, H, W, C]) -> [B, H, W, C]."""
    relu = jax.nn.relu

    def norm(p: Params, x: jax.Array) -> jax.Array:
        normed = group_norm(x, p["norm.weight"], p["norm.bias"], min(32, x.shape[-1]))
        return x + jnp.tanh(p["scale"]) * (normed - x)

    def attention(p: Params, x: jax.Array) -> jax.Array:
        squeezed = relu(x.mean((1, 2)) @ p["squeeze"].T)
        return x * (2 * jax.nn.sigmoid(squeezed @ p["excite"].T))[:, None, None]

    def depthwise(p: Params, x: jax.Array) -> jax.Array:
        return x + relu(_norm(p, "norm", conv(form, conv(form, x, p["depth"]), p["point"])))

    def conv_small(p: Params, x: jax.Array) -> jax.Array:
        return x + conv(form, relu(_norm(p, "norm", x)), p["point"])

    def conv_light(p: Params, x: jax.Array) -> jax.Array:
        return x + relu(_norm(p, "norm", conv(form, x, p["conv"])))

    def conv_heavy(p: Params, x: jax.Array) -> jax.Array:
        branch = relu(_norm(p, "norm1", conv(form, x, p["conv1"])))
        return x + relu(_norm(p, "norm2", conv(form, branch, p["conv2"])))

    def bottleneck(p: Params, x: jax.Array) -> jax.Array:
        branch = relu(_norm(p, "norm1", conv(form, x, p["down"])))
        branch = relu(_norm(p, "norm2", conv(form, branch, p["conv"])))
        return x + conv(form, branch, p["up"])

    table = (norm, attention, depthwise, conv_small, conv_light, conv_heavy, bottleneck)
    return {function.__name__: function for function in table}[name]


def _pool(x: jax.Array) -> jax.Array:
    samples, height, width, channels = x.shape
    return x.reshape(samples, height // 2, 2, width // 2, 2, channels).max((2, 4))


def block_train(form: str, params: Params, running: Params, x: jax.Array) -> tuple[jax.Array, Params]:
    """Convolution, batch norm, relu, 2x2 maximum; and the running statistics after it."""
    features = conv(form, x, params["conv"])
    mean, variance = features.mean((0, 1, 2)), features.var((0, 1, 2))
    samples = features.size // features.shape[-1]
    fresh = {"mean": mean, "variance": variance * (samples / (samples - 1))}
    running = {name: 0.9 * running[name] + 0.1 * lax.stop_gradient(fresh[name]) for name in running}
    normed = (features - mean) * lax.rsqrt(variance + EPSILON)
    return _pool(jax.nn.relu(normed * params["norm.weight"] + params["norm.bias"])), running


def block_infer(form: str, params: Params, running: Params, x: jax.Array) -> jax.Array:
    """The same with running statistics."""
    scale = params["norm.weight"] * lax.rsqrt(running["variance"] + EPSILON)
    shift = params["norm.bias"] - running["mean"] * scale
    return _pool(jax.nn.relu(conv(form, x, params["conv"]) * scale + shift))


def head(params: Params, x: jax.Array) -> jax.Array:
    """Mean over positions, then logits."""
    return x.mean((1, 2)) @ params["weight"].T + params["bias"]


def running_start(count: int, channels: int, dtype: Any) -> Params:
    """Running statistics of n fresh networks."""
    return {"mean": jnp.zeros((count, channels), dtype), "variance": jnp.ones((count, channels), dtype)}
