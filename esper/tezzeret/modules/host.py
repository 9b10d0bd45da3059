"""From a ``torch.nn.Module`` to a host: traced in training and in inference, cut at its sites, lifted over networks."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

from esper.kasmina.host import BlockInfer, BlockTrain, Host, HostBlock, OneNetwork, Tie
from esper.kasmina.layout import Given, Param, Params
from esper.kasmina.site import Site
from esper.leyline.config import ConfigError
from esper.nissa.public_operations import public
from esper.tezzeret.modules.agreement import expect_agreement
from esper.tezzeret.modules.cuts import Cut, choose, flow, match
from esper.tezzeret.modules.refusals import expect_known
from esper.tezzeret.modules.segment import Segment, compute, why_not
from esper.tezzeret.modules.trace import Traced, sample_shape, trace, writes

KINDS = {3: "conv", 2: "token", 1: "vector"}
"""Axes of a sample's features -> the kind of their site."""

COUNTER = "num_batches_tracked"
"""Buffers of norms that count, which nothing depends on."""


class BlockForms(NamedTuple):
    """A block to be, in both forms."""

    train: Segment
    infer: Segment
    site: Site | None


class ModuleTensors(NamedTuple):
    """What a module computes with, by name; two names of one tensor are one here."""

    trained: dict[str, Tensor]
    tracked: dict[str, Tensor]
    held: dict[str, Tensor]


@public("host")
def host(
    module: nn.Module,
    example: Tensor,
    sites: str | Sequence[str] = "auto",
    frozen: str | Sequence[str] = (),
    start: Literal["given", "shuffled"] = "given",
) -> Host:
    """Make a host of a module: block i ends at the i-th site, and a slot may follow every block but the last.

    The module is not changed. Norms keep running statistics, dropout draws from keys, tied weights stay tied.

    Args:
      module: takes a batch and returns logits, [B, C], or [B, T, C] from tokens [B, T].
      example: a batch: floating [B, ...], or int64 tokens.
      sites: names of submodules, or of operations of a functional forward (such as "relu" or "add_1"), behind which
        slots may sit: places that all features go through. "auto": behind every stretch of layers with its norm and
        activation that is such a place; where there is none, slots lead from the input to the logits. The site's kind
        follows from its features: [C, H, W] conv, [T, D] token, [D] vector.
      frozen: names of submodules whose parameters and statistics stay as they are; their norms run as in inference.
        Parameters that require no gradient are frozen, too.
      start: "given": all environments start from the module's weights; "shuffled": each with the numbers of every
        weight of two or more dimensions in a random order of its own, as if its layers were drawn anew.

    Returns:
      the host.

    Raises:
      ConfigError: what the module does cannot be computed for many networks at once, or a name is not one of its own;
        one line.
    """
    place = f"host({type(module).__name__})"
    example = _batch(place, example)
    if start not in ("given", "shuffled"):
        raise ConfigError(f"{place}: start = {start!r}: expected 'given' or 'shuffled'")
    names = [frozen] if isinstance(frozen, str) else list(frozen)
    expect_known(place, module, names)
    forms = {is_training: _form(module, names, is_training) for is_training in (True, False)}
    traced = {is_training: trace(place, form, example) for is_training, form in forms.items()}
    stretches = _stretches(place, traced, sites, example.dtype == torch.int64)
    tensors = _tensors(place, forms[False], names, traced, stretches)
    made = Host(
        type(module).__name__,
        tuple(example.shape[1:]),
        int(traced[False].output.meta["val"].shape[-1]),
        tuple(_blocks(place, stretches, tensors, example, start == "shuffled")),
        takes_tokens=example.dtype == torch.int64,
    )
    expect_agreement(place, made._replace(blocks=_given(made.blocks)), forms, example)
    return made


def _batch(place: str, example: Tensor) -> Tensor:
    """The example as a batch of at least two samples: what is traced with one fits one only."""
    if not isinstance(example, Tensor) or example.dim() < 2 or 0 in example.shape:
        found = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ConfigError(f"{place}: example = {found}: expected a batch of samples, a tensor [B, ...]")
    if not example.is_floating_point() and (example.dtype != torch.int64 or example.dim() != 2):
        raise ConfigError(
            f"{place}: example = {example.dtype} {list(example.shape)}: expected floating, or int64 [B, T]"
        )
    return torch.cat((example, example, example)) if len(example) == 1 else example


def _form(module: nn.Module, frozen: Iterable[str], is_training: bool) -> nn.Module:
    """A copy in training or inference; what is frozen is always in inference."""
    form = copy.deepcopy(module).train(is_training)
    for name in frozen:
        form.get_submodule(name).eval()
    return form


def _stretches(
    place: str, traced: Mapping[bool, Traced], sites: str | Sequence[str], takes_tokens: bool
) -> list[BlockForms]:
    cuts = choose(place, traced[False], sites)
    trained = match(traced[True], cuts)
    missing = [cut.name for cut in cuts if cut.name not in trained]
    if missing and sites != "auto":
        raise ConfigError(f"{place}: {missing[0]!r} is no such place in training; expected one in both forms")
    cuts = [cut for cut in cuts if cut.name in trained]
    parts = (_parts(traced[True], [trained[cut.name] for cut in cuts]), _parts(traced[False], cuts))
    shape = sample_shape(traced[False], traced[False].output)
    if shape is None or len(shape) != 1 + takes_tokens:
        raise ConfigError(f"{place}: gives {shape} per sample; expected logits [C], or [T, C] from tokens")
    for form in traced.values():
        if (reason := why_not(form)) is not None:
            raise ConfigError(f"{place}: {reason}; expected torch.nn.Dropout, or none")
    marks = [_site(cut, takes_tokens) for cut in cuts]
    return [BlockForms(*forms) for forms in zip(*parts, [*marks, None], strict=True)]


def _parts(traced: Traced, cuts: Sequence[Cut]) -> list[Segment]:
    nodes = flow(traced)
    ends = [*(cut.node for cut in cuts), traced.output]
    starts = [traced.inputs, *ends[:-1]]
    places = [0, *(nodes.index(cut.node) + 1 for cut in cuts), len(nodes)]
    return [
        Segment(traced, tuple(nodes[places[i] : places[i + 1]]), start, end)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _site(cut: Cut, takes_tokens: bool) -> Site:
    rank = len(cut.shape)
    timed = rank == 2 and takes_tokens
    return Site(KINDS[rank], cut.shape, 1 if rank == 2 else 0, 0 if timed else None)


def _tensors(
    place: str, module: nn.Module, frozen: Sequence[str], traced: Mapping[bool, Traced], stretches: Sequence[BlockForms]
) -> ModuleTensors:
    """What the module computes with, sorted by what becomes of it."""
    values: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    learning = {name for name, value in values.items() if value.requires_grad and not _within(name, frozen)}
    values |= dict(module.named_buffers(remove_duplicate=False))
    read = dict.fromkeys(name for s in stretches for part in (s.train, s.infer) for name in part.reads)
    changed = dict.fromkeys(name for s in stretches for name in s.train.changes)
    for form in traced.values():
        values |= form.constants
    trained = {name: values[name].detach() for name in read if name in learning}
    floats = [name for name in changed if values[name].is_floating_point() and name not in trained]
    tracked = {name: values[name].detach() for name in floats}
    written = (node.args[0] for form in traced.values() for node in form.graph.nodes if writes(node))
    names = {name for node in written for form in traced.values() if (name := form.names.get(node)) is not None}
    odd = [name for name in (*changed, *names) if name not in tracked and not name.endswith(COUNTER)]
    if odd:
        raise ConfigError(f"{place}: writes into {odd[0]!r}; expected statistics that follow from the features")
    if not trained:
        raise ConfigError(f"{place}: no parameter that learns; expected one that is not frozen")
    held = {name: _fixed(values[name]) for name in read if name not in trained and name not in tracked}
    return ModuleTensors(trained, tracked, held)


def _fixed(value: Tensor) -> Tensor:
    """A copy that does not learn; of a parameter, a parameter."""
    own = value.detach().clone()
    return nn.Parameter(own, requires_grad=False) if isinstance(value, nn.Parameter) else own


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _blocks(
    place: str, stretches: Sequence[BlockForms], tensors: ModuleTensors, example: Tensor, is_shuffled: bool
) -> Iterable[HostBlock]:
    owners: dict[str, Tie] = {}
    tracked: set[str] = set()
    x = example
    for index, stretch in enumerate(stretches):
        reads = dict.fromkeys((*stretch.train.reads, *stretch.infer.reads))
        params = [_param(name, tensors.trained[name], is_shuffled) for name in reads if name in tensors.trained]
        buffers = [_param(name, tensors.tracked[name], False) for name in reads if name in tensors.tracked]
        twice = [buffer.name for buffer in buffers if buffer.name in tracked]
        if twice:
            raise ConfigError(f"{place}: {twice[0]!r} is a statistic of two blocks; expected no site between its uses")
        tracked |= {buffer.name for buffer in buffers}
        ties = tuple(owners[param.name] for param in params if param.name in owners)
        own = tuple(param for param in params if param.name not in owners)
        owners |= {param.name: Tie(index, param) for param in own}
        one = _one(stretch, {name: tensors.held[name] for name in reads if name in tensors.held})
        everything = {name: t for table in tensors for name, t in table.items()}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x, _ = compute(stretch.infer, everything, x, None)
        flops = counter.get_total_flops() // (2 * len(example))
        train, infer = lift(one, draws=stretch.train.draws)
        yield HostBlock(own, tuple(buffers), train, infer, stretch.site, flops, ties, stretch.train.draws, one)


def _param(name: str, value: Tensor, is_shuffled: bool) -> Param:
    drawn = is_shuffled and value.dim() > 1
    return Param(name, tuple(value.shape), "shuffled" if drawn else "given", 1.0, Given(value.clone()))


def _given(blocks: Iterable[HostBlock]) -> tuple[HostBlock, ...]:
    """The blocks, started from the module's own weights."""
    return tuple(
        block._replace(
            params=tuple(param._replace(init="given") for param in block.params),
            ties=tuple(tie._replace(param=tie.param._replace(init="given")) for tie in block.ties),
        )
        for block in blocks
    )


def _one(stretch: BlockForms, held: dict[str, Tensor]) -> OneNetwork:
    """A stretch for one network."""

    def train(tensors: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
        return compute(stretch.train, tensors, x, key)

    def infer(tensors: Params, x: Tensor) -> Tensor:
        return compute(stretch.infer, tensors, x, None)[0]

    return OneNetwork(train, infer, held)


def lift(one: OneNetwork, draws: bool) -> tuple[BlockTrain, BlockInfer]:
    """A block's functions for n networks from those for one: (train, infer)."""

    def held_like(params: Params, x: Tensor) -> Params:
        like = next(iter(params.values()), x)
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        return {
            name: value.to(like.device, dtype if value.is_floating_point() else value.dtype)
            for name, value in one.held.items()
        }

    def train(params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
        held = held_like(params, x)

        def single(params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
            return one.train({**held, **params, **buffers}, x, key)

        return vmap(single, in_dims=(0, 0, 0, 0 if draws else None))(params, buffers, x, key)

    def infer(params: Params, buffers: Params, x: Tensor) -> Tensor:
        held = held_like(params, x)

        def single(params: Params, buffers: Params, x: Tensor) -> Tensor:
            return one.infer({**held, **params, **buffers}, x)

        return vmap(single)(params, buffers, x)

    return train, infer
