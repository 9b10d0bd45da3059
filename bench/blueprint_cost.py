"""What a slot with a document's blueprint costs: beside its Python form, and beside the same layers in the host.

Run from the repository's root: ``python -m bench.blueprint_cost [--backend B] [--envs E] [--repeat N] [--only NAMES]``.
For every shipped blueprint: an epoch of SGD steps of the same hosts on the same minibatches, in turns of one run, with
the seed fossilized in every environment (a part of the network like any other), as a document and in its Python form;
and of hosts that have the same layers as a block of their own. Of a bypass, whose layers lie beside the host's, these
are the host without a seed and a host of nothing but the bypass, and of what lies behind the point where it ends, one
after the other.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import esper
from bench.seed_cost import epoch_of
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.bypass_blueprints import CONV_BYPASSES, MAP_BYPASSES, conv_bypass, linear_probe
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.host import Host, HostBlock, plain_block
from esper.kasmina.layers import linear
from esper.kasmina.layout import Params, fan_in_uniform
from esper.kasmina.seeding import Seeds, place_seeds
from esper.kasmina.site import Site, vector_site
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.kasmina.token_bypasses import TOKEN_BYPASSES, TOKEN_PROBE
from esper.kasmina.transformer import transformer_host
from esper.kasmina.vector_blueprints import VECTOR_BLUEPRINTS
from esper.kasmina.vector_bypasses import VECTOR_BYPASSES
from esper.leyline.actions import Blend
from esper.leyline.stages import Stage
from esper.tezzeret.blueprints import blueprint_of, shipped
from esper.tolaria.data import Dataset
from esper.tolaria.markov import draw_chain, markov
from esper.tolaria.synthetic import synthetic

VOCABULARY, LENGTH, WIDTH, CLASSES = 27, 16, 32, 10
ALLOWED = {"python": 1.05, "block": 1.5}
"""Times the cost of the Python form, and of the same layers in the host."""


class Place(NamedTuple):
    """Where blueprints of a kind are measured.

    Attributes:
      host: with a slot behind block 0.
      data: that it learns.
      kinds: blueprints that keep the shape there.
      bypasses: from the input to the logits, or to where ``slot`` says.
      slot: of bypasses.
    """

    host: Host
    data: Dataset
    kinds: tuple[Blueprint, ...]
    bypasses: tuple[Blueprint, ...]
    slot: str = "input:logits"

    @property
    def target(self) -> str:
        """The point where bypasses act."""
        return self.slot.partition(":")[2]


def _dense(outputs: int, inputs: int, site: Site | None) -> HostBlock:
    params = (fan_in_uniform("w", (outputs, inputs), inputs),)

    def apply(named: Params, x: Tensor) -> Tensor:
        y = linear(x, named["w"])
        return y if site is None else torch.relu(y)

    return plain_block(params, apply, site, outputs * inputs)


def places() -> dict[str, Place]:
    """By kind of site."""
    conv = cnn_host((1, 8, 8), CLASSES, num_blocks=1, base_channels=8, pool_blocks=0)
    blocks = (_dense(WIDTH, 16, vector_site(WIDTH)), _dense(CLASSES, WIDTH, None))
    token = transformer_host(VOCABULARY, LENGTH, num_layers=1, num_heads=4, width=WIDTH)
    images, vectors = (synthetic(shape, CLASSES, num_train=256, num_val=64) for shape in ((1, 8, 8), (16,)))
    texts = markov(draw_chain(VOCABULARY, 1.0, 0), LENGTH, num_train=256, num_val=64)
    to_logits = (*CONV_BYPASSES, conv_bypass(8, 2, "group"), linear_probe(True))
    maps = {
        f"maps, {pools} pools": Place(
            cnn_host((1, 8, 8), CLASSES, num_blocks=max(1, pools), base_channels=8, pool_blocks=pools),
            *(images, (), (kind,), f"input:block{max(1, pools) - 1}"),
        )
        for pools, kind in enumerate(MAP_BYPASSES)
    }
    return {
        "conv": Place(conv, images, CONV_BLUEPRINTS, to_logits),
        **maps,
        "token": Place(token, texts, TOKEN_BLUEPRINTS, (*TOKEN_BYPASSES, TOKEN_PROBE)),
        "vector": Place(Host("vectors", (16,), CLASSES, blocks), vectors, VECTOR_BLUEPRINTS, VECTOR_BYPASSES),
    }


def document_of(kind: Blueprint, where: str) -> Blueprint:
    """The same blueprint as a document."""
    documents = shipped()
    names = (f"{where}_{kind.name}", kind.name, f"token_{kind.name}")  # what is for tokens is for vectors as well
    return blueprint_of(documents[next(name for name in names if name in documents)])


def inserted(host: Host, kind: Blueprint) -> Host:
    """The host with the blueprint's layers as its second block."""
    site = host.points["block0"]
    params, buffers = kind.params(site, site), kind.buffers(site, site)
    block = HostBlock(params, buffers, kind.train, kind.infer, None, kind.flops(site, site))
    first, *rest = host.blocks
    shifted = tuple(
        each._replace(ties=tuple(tie._replace(block=tie.block + (tie.block > 0)) for tie in each.ties)) for each in rest
    )
    return host._replace(name=f"{host.name} with {kind.name}", blocks=(first, block, *shifted))


def alone(place: Place, kind: Blueprint) -> Host:
    """A host of nothing but a bypass, and of what lies behind it."""
    host = place.host
    source, target = host.points["input"], host.points[place.target]
    rest = () if place.target == "logits" else host.blocks[int(place.target.removeprefix("block")) + 1 :]
    params, buffers = kind.params(source, target), kind.buffers(source, target)
    block = HostBlock(params, buffers, kind.train, kind.infer, None, kind.flops(source, target))
    return host._replace(name=kind.name, blocks=(block, *rest))


def epoch_with(place: Place, host: Host, kind: Blueprint | None, asked: argparse.Namespace) -> Callable[[], Any]:
    """An epoch of the host, with the seed in every environment, or without slots."""
    slots: tuple[int | str, ...] = () if kind is None else (place.slot if kind.is_bypass else 0,)
    settings: dict[str, Any] = {"steps_per_epoch": asked.steps, "batch_size": asked.batch, "slots": slots}
    settings |= {"blends": (Blend.LINEAR,)}
    task = esper.Task("cost", host, () if kind is None else (kind,), place.data, settings)
    engine = esper.make(task, asked.envs, backend=asked.backend)
    state = engine.init(0)
    if kind is not None:
        full = partial(torch.full, state.slots.stage.shape)
        seeds = Seeds(full(int(Stage.FOSSILIZED)), full(0), full(int(Blend.LINEAR)), torch.ones_like(state.slots.alpha))
        state = place_seeds(engine.structure, state, seeds)
    return epoch_of(engine, state)


def measure(place: Place, where: str, kind: Blueprint, asked: argparse.Namespace) -> dict[str, Any]:
    """One blueprint's row."""
    document = document_of(kind, where)
    runs = [epoch_with(place, place.host, each, asked) for each in (document, kind)]
    hosts = (place.host, alone(place, kind)) if kind.is_bypass else (inserted(place.host, kind),)
    runs += [epoch_with(place, host, None, asked) for host in hosts]
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(asked.repeat + 1):
        for index in range(len(runs)) if turn % 2 else reversed(range(len(runs))):
            begun = time.process_time()
            runs[index]()
            if turn:  # the first only warms up
                taken[index].append(time.process_time() - begun)
    mine, python, *rest = taken
    block = [sum(each) for each in zip(*rest, strict=True)]
    ratios = {
        "python": statistics.median(one / other for one, other in zip(mine, python, strict=True)),
        "block": statistics.median(one / other for one, other in zip(mine, block, strict=True)),
    }
    return {"site": where, "blueprint": kind.name, "milliseconds": 1e3 * statistics.median(mine), **ratios}


def table(found: dict[str, Any]) -> str:
    """As markdown."""
    lines = [
        "# What a slot with a document costs\n",
        f"An epoch, E = {found['envs']}, minibatches of {found['batch']}, backend {found['backend']}, one thread, "
        f"{found['turns']} turns, medians of processor time. {found['platform']}, torch {found['torch']}.\n",
        f"| site | blueprint | ms | of its Python form (<= {ALLOWED['python']}) | of the same layers in the host "
        f"(<= {ALLOWED['block']}) |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        marks = [f"{row[name]:.3f}{'' if row[name] <= ALLOWED[name] else ' (more)'}" for name in ALLOWED]
        lines.append(f"| {row['site']} | {row['blueprint']} | {row['milliseconds']:.2f} | {marks[0]} | {marks[1]} |")
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=21, help="turns")
    parser.add_argument("--only", default="", help="blueprints, with commas between; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/blueprint_cost"))
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    chosen = set(asked.only.split(",")) - {""}
    rows = [
        measure(place, where, kind, asked)
        for where, place in places().items()
        for kind in (*place.kinds, *place.bypasses)
        if not chosen or kind.name in chosen
    ]
    found = {"date": datetime.date.today().isoformat(), "envs": asked.envs, "turns": asked.repeat, "rows": rows}
    found |= {"backend": asked.backend, "batch": asked.batch, "allowed": ALLOWED}
    found |= {"platform": platform.platform(), "torch": torch.__version__}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "blueprint_cost.json").write_text(json.dumps(found, indent=1) + "\n")
    (asked.out / "blueprint_cost.md").write_text(table(found))
    print(table(found))
    return found


if __name__ == "__main__":
    main()
