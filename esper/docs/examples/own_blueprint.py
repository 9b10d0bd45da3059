"""A kind of seed of one's own: a network that looks at an image patch by patch, grown beside the host of the digits.

``python -m esper.docs.examples.own_blueprint`` checks it, grows it, and compares it with what is shipped. The text with
its figures is ``esper/docs/examples.md``.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

import torch
from torch import Tensor

from esper.docs.examples.results import write_outcomes
from esper.kasmina.blueprint import Blueprint, bypassing
from esper.kasmina.bypass_blueprints import CONV4X2, CONV8X2
from esper.kasmina.checks import check_blueprint
from esper.kasmina.layers import linear
from esper.kasmina.layout import Param, Params, zero_affine
from esper.kasmina.site import Site
from esper.kasmina.transformer import affine, apply_affine
from esper.runtime.build import make
from esper.runtime.rollout import Outcome, rollout
from esper.runtime.tasks import digits
from esper.simic.rewards import DEFAULT_REWARD, build_reward_params
from esper.tamiyo.policies import from_mask
from esper.tamiyo.scripted import grow, wait
from esper.utils.settings import read_settings, setting
from esper.utils.terminal import output


@dataclass(frozen=True)
class BlueprintExampleSettings:
    """Grow a kind of seed of one's own beside two that are shipped."""

    num_envs: int = setting(32, "environments", low=6, high=65536)
    horizon: int = setting(25, "epochs", low=1, high=1000)
    hidden: int = setting(12, "numbers that a row of the image becomes", low=1, high=256)
    seed: int = setting(1, "seed of the environments", low=0, high=2**31)


def rows_bypass(hidden: int) -> Blueprint:
    """Every row of an image through the same linear map and relu; of all of them, the logits. ``rows12``.

    Rows of the maps share their weights, as positions share those of a convolution, so that it is smaller than a
    perceptron of the same width.

    Args:
      hidden: numbers h that a row becomes; for C maps of H rows and W columns to K classes it has
        (W + 1) h + (C H h + 1) K parameters.
    """

    def params(source: Site, target: Site) -> tuple[Param, ...]:
        maps, height, width = source.shape
        return *affine("row", hidden, width), *zero_affine("head", target.channels, maps * height * hidden)

    def apply(weights: Params, x: Tensor) -> Tensor:
        rows = torch.relu(apply_affine(weights, "row", x.flatten(2, 3)))  # [n, B, C H, h]
        return linear(rows.flatten(2), weights["head.weight"], weights["head.bias"])

    def flops(source: Site, target: Site) -> int:
        maps, height, width = source.shape
        return maps * height * hidden * (width + target.channels)

    return bypassing(
        name=f"rows{hidden}",
        fits=lambda source, target: source.kind == "conv" and target.kind == "logits" and len(target.shape) == 1,
        params=params,
        apply=apply,
        flops=flops,
    )


def run(settings: BlueprintExampleSettings, out: TextIO | None = None) -> list[Outcome]:
    """Check the blueprint, grow it and others in the same environments, and print what came of it.

    Args:
      settings: everything.
      out: where the table goes; None = standard output.

    Returns:
      outcomes: waiting first, then each kind of seed.
    """
    out, task, mine = output(out), digits(), rows_bypass(settings.hidden)
    points = task.host.points
    check_blueprint(mine, points["input"], points["logits"])
    kinds = (mine, CONV4X2, CONV8X2)
    task = task._replace(blueprints=kinds)
    engine = make(task, settings.num_envs, slots=("input:logits",), horizon=settings.horizon)
    for name, size in zip((kind.name for kind in kinds), engine.structure.sizes[0], strict=True):
        out.write(f"{name}: {size} parameters beside the host's {engine.structure.host.num_params}\n")
    params = build_reward_params(dict(task.rewards), engine.config, engine.data.train.inputs.device)
    policies = [from_mask("wait", wait(engine.codec))]
    policies += [from_mask(f"grow {kind.name}", grow(engine.codec, kind.name)) for kind in kinds]
    outcomes = [rollout(engine, each, settings.seed, DEFAULT_REWARD, params)[1] for each in policies]
    write_outcomes(out, outcomes)
    return outcomes


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    words = sys.argv[1:] if arguments is None else arguments
    run(read_settings(BlueprintExampleSettings, words, "python -m esper.docs.examples.own_blueprint"))


if __name__ == "__main__":
    main()
