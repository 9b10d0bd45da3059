"""A host as a user would write it: a multilayer perceptron with slots behind its two hidden layers."""

from itertools import pairwise

import torch
from torch import Tensor

import esper
from esper.kasmina.host import Host, HostBlock, plain_block
from esper.kasmina.layers import linear
from esper.kasmina.layout import Params, constant, fan_in_uniform
from esper.kasmina.site import vector_site
from esper.kasmina.token_blueprints import LORA, MLP_SMALL, NORM
from esper.tolaria.synthetic import synthetic


def layer(into: int, out: int, hidden: bool) -> HostBlock:
    """An affine map; a hidden layer adds a relu and a site."""

    def apply(params: Params, x: Tensor) -> Tensor:
        y = linear(x.flatten(2), params["weight"], params["bias"])
        return torch.relu(y) if hidden else y

    params = fan_in_uniform("weight", (out, into), into), constant("bias", (out,), 0.0)
    return plain_block(params, apply, vector_site(out) if hidden else None, flops=into * out)


def mlp_host(input_shape: tuple[int, ...], num_classes: int, widths: tuple[int, ...]) -> Host:
    """Fully connected layers of the given widths, then logits."""
    sizes = [torch.Size(input_shape).numel(), *widths]
    hidden = [layer(into, out, True) for into, out in pairwise(sizes)]
    return Host("mlp", input_shape, num_classes, (*hidden, layer(sizes[-1], num_classes, False)))


def mlp_task() -> esper.Task:
    """Noisy prototypes, a narrow host, and slots behind both hidden layers."""
    data = synthetic((1, 4, 4), num_train=256, num_val=100, noise=0.3)
    host = mlp_host(data.input_shape, data.num_classes, widths=(3, 3))
    settings = {"slots": (0, 1), "batch_size": 16, "steps_per_epoch": 4, "horizon": 20}
    settings |= {"host_lr": 0.1, "seed_lr": 0.1, "min_training_epochs": 1, "min_improvement": -100.0}
    settings |= {"min_contribution": -100.0, "blend_epochs": 2, "min_blending_epochs": 1, "min_gradient_ratio": 0.0}
    return esper.Task("mlp", host, (NORM, LORA, MLP_SMALL), data, settings)
