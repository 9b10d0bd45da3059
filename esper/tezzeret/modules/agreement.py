"""Whether a host computes what its module does: asked once, with the module's own weights, before anything trains."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from esper.kasmina.host import Host
from esper.kasmina.layout import Params
from esper.leyline.config import ConfigError
from esper.utils import rng
from esper.utils.documents import cause

NETWORKS = 2
"""Rows that the host is run with."""

CLOSE = {torch.float32: 1e-3, torch.float64: 1e-8}
"""How far results may differ, in units of the largest."""


def expect_agreement(place: str, host: Host, forms: Mapping[bool, nn.Module], example: Tensor) -> None:
    """Run host and module side by side, with a gradient.

    Args:
      place: what messages call the module.
      host: started from the module's weights.
      forms: the module in training (True) and in inference.
      example: a batch.

    Raises:
      ConfigError: the host fails, gives something else, or leaves other statistics; one line.
    """
    example = _varied(host, example)
    for is_training, form in forms.items():
        held = {name: value.clone() for block in host.blocks for name, value in _held(block).items()}
        try:
            found, buffers = _run(host, example, is_training)
        except Exception as error:  # whatever operations do when they meet many networks
            raise ConfigError(f"{place}: cannot run for many networks at once: {cause(error, 300)}") from error
        if any(not torch.equal(value, held[name]) for block in host.blocks for name, value in _held(block).items()):
            raise ConfigError(f"{place}: writes into a tensor that all networks share; expected statistics only")
        if is_training and any(block.draws for block in host.blocks):
            continue
        module = copy.deepcopy(form)
        with torch.no_grad():
            wanted = module(example)
        words = "training" if is_training else "inference"
        _expect_close(place, f"logits in {words}", found, wanted)
        statistics = dict(module.named_buffers())
        for name, value in buffers.items():
            _expect_close(place, f"{name} in {words}", value, statistics[name])


def _varied(host: Host, example: Tensor) -> Tensor:
    """The example, or, where its samples are all alike, others: norms make much of the rounding of what is constant."""
    if bool((example != example[:1]).any()):
        return example
    shape, key = tuple(example.shape), rng.key(0)
    if not example.is_floating_point():
        return (rng.uniform(key, shape) * host.num_outputs).to(example)
    return rng.normal(key, shape).to(example)


def _held(block: object) -> Mapping[str, Tensor]:
    one = getattr(block, "one", None)
    return {} if one is None else one.held


def _run(host: Host, example: Tensor, is_training: bool) -> tuple[Tensor, Params]:
    """Outputs [n, B, ...] and new statistics [n, ...] by name; every block's gradient is taken, too."""
    keys = rng.fold_in(rng.key(0), torch.arange(NETWORKS)).to(example.device)
    dtype = next(param.given.values.dtype for block in host.blocks for param in block.params if param.given)
    x, tensors, new = example.expand(NETWORKS, *example.shape), dict[str, Tensor](), dict[str, Tensor]()
    for block in host.blocks:
        tensors |= block.layout.views(block.layout.init(keys, dtype).requires_grad_())
        own = {param.name: tensors[param.name] for param in block.reads.params}
        buffers = block.buffer_layout.views(block.buffer_layout.init(keys, dtype))
        if is_training:
            x, kept = block.train(own, buffers, x, keys if block.draws else None)
            new |= kept
        else:
            x = block.infer(own, buffers, x)
    x.square().mean().backward()
    return x.detach(), {name: value.detach() for name, value in new.items()}


def _expect_close(place: str, what: str, found: Tensor, wanted: Tensor) -> None:
    wanted = wanted.detach().expand(found.shape) if wanted.dim() else wanted.detach().reshape(1, 1).expand(found.shape)
    scale = float(wanted.abs().max().clamp(min=1e-3))
    distance = float((found - wanted).abs().max()) / scale
    if not distance <= CLOSE.get(wanted.dtype, 1e-3):
        raise ConfigError(
            f"{place}: {what} differ from the module's own by {distance:.2g} of the largest; expected a forward "
            "without hidden state, which changes no tensor that others see"
        )
