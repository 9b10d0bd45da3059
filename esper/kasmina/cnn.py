"""The convolutional host: blocks of convolution, batch norm, relu and pooling, then mean and a linear head.

Block i has base * 2**i channels; order within a block is convolution, norm, relu, pool, site (a slot sees the pooled
map). Source: the host of esper-lite.
"""

import torch
from torch import Tensor

from esper.kasmina.host import Host, HostBlock
from esper.kasmina.layers import apply_batch_norm, batch_norm, conv2d, linear, max_pool2, track
from esper.kasmina.layout import Params, constant, fan_in_uniform
from esper.kasmina.site import conv_site
from esper.leyline.config import ConfigError


def _train(params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
    del key
    normed, mean, variance = batch_norm(conv2d(x, params["conv"]), params["norm.weight"], params["norm.bias"])
    running = {"mean": track(buffers["mean"], mean), "variance": track(buffers["variance"], variance)}
    return torch.relu(normed), running


def _infer(params: Params, buffers: Params, x: Tensor) -> Tensor:
    norm = (params["norm.weight"], params["norm.bias"], buffers["mean"], buffers["variance"])
    return torch.relu(apply_batch_norm(conv2d(x, params["conv"]), *norm))


def _train_pooled(params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
    features, running = _train(params, buffers, x, key)
    return max_pool2(features), running


def _infer_pooled(params: Params, buffers: Params, x: Tensor) -> Tensor:
    return max_pool2(_infer(params, buffers, x))


def _head(params: Params, buffers: Params, x: Tensor) -> Tensor:
    del buffers
    return linear(x.mean((-2, -1)), params["weight"], params["bias"])


def _train_head(params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
    del key
    return _head(params, buffers, x), {}


def cnn_host(
    input_shape: tuple[int, ...],
    num_classes: int,
    num_blocks: int = 3,
    base_channels: int = 8,
    pool_blocks: int | None = None,
    kernel_size: int = 3,
) -> Host:
    """Build the convolutional host.

    Args:
      input_shape: (C, H, W) of one sample.
      num_classes: outputs.
      num_blocks: blocks, each with a site behind it.
      base_channels: channels of the first block; they double from block to block.
      pool_blocks: how many blocks, from the first, end in 2x2 pooling; None = all.
      kernel_size: odd side of the convolutions.

    Raises:
      ConfigError: a value out of range, or maps that pooling shrinks to nothing.
    """
    pools = num_blocks if pool_blocks is None else pool_blocks
    if len(input_shape) != 3:
        raise ConfigError(f"cnn_host input_shape = {input_shape}: expected (channels, height, width)")
    if num_blocks < 1 or base_channels < 1 or not 0 <= pools <= num_blocks:
        raise ConfigError(
            f"cnn_host num_blocks = {num_blocks}, base_channels = {base_channels}, pool_blocks = {pools}: "
            "expected at least 1 block of at least 1 channel and 0 to num_blocks pools"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f"cnn_host kernel_size = {kernel_size}: expected an odd integer >= 1")
    channels, height, width = input_shape
    blocks = []
    for block in range(num_blocks):
        out, fan_in = base_channels * 2**block, channels * kernel_size**2
        pooled = block < pools
        flops = height * width * fan_in * out
        height, width = (height // 2, width // 2) if pooled else (height, width)
        if height < 1 or width < 1:
            raise ConfigError(f"cnn_host pool_blocks = {pools}: input {input_shape} is empty after block {block}")
        blocks.append(
            HostBlock(
                params=(
                    fan_in_uniform("conv", (out, channels, kernel_size, kernel_size), fan_in),
                    constant("norm.weight", (out,), 1.0),
                    constant("norm.bias", (out,), 0.0),
                ),
                buffers=(constant("mean", (out,), 0.0), constant("variance", (out,), 1.0)),
                train=_train_pooled if pooled else _train,
                infer=_infer_pooled if pooled else _infer,
                site=conv_site(out, height, width),
                flops=flops,
            )
        )
        channels = out
    head = (
        fan_in_uniform("weight", (num_classes, channels), channels),
        fan_in_uniform("bias", (num_classes,), channels),
    )
    blocks.append(HostBlock(head, (), _train_head, _head, None, channels * num_classes))
    name = f"cnn {'-'.join(str(base_channels * 2**block) for block in range(num_blocks))}"
    return Host(name, tuple(input_shape), num_classes, tuple(blocks))
