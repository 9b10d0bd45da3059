"""Hosts: the network that learns the task, as a row of blocks with points in between where seeds can read and act."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from esper.kasmina.layout import Layout, Param, Params
from esper.kasmina.site import Site
from esper.leyline.config import ConfigError

BlockInfer = Callable[[Params, Params, Tensor], Tensor]
BlockTrain = Callable[[Params, Params, Tensor, Tensor | None], tuple[Tensor, Params]]


class Tie(NamedTuple):
    """A trained tensor that an earlier block owns and a later one reads too, as a tied head reads the embedding.

    Attributes:
      block: index of the owner.
      param: the owner's entry for it.
    """

    block: int
    param: Param


class OneNetwork(NamedTuple):
    """A block as it was written, for one network; its block does the same for n of them.

    Attributes:
      train: (tensors by name, x [B, ...], key int64 [2] or None) -> (y, new buffers). The tensors are parameters, tied
        ones too, buffers, and what is held.
      infer: (tensors, x) -> y.
      held: tensors by name that are neither trained nor tracked: all networks have the same. A parameter among them is
        frozen.
    """

    train: Callable[[Params, Tensor, Tensor | None], tuple[Tensor, Params]]
    infer: Callable[[Params, Tensor], Tensor]
    held: Mapping[str, Tensor]


class HostBlock(NamedTuple):
    """One stretch of a host.

    Attributes:
      params: trained tensors of its own.
      buffers: tensors that are not trained (running statistics); ``init`` must be "constant" or "given".
      train: (params, buffers, x, key) -> (y, new buffers); pure, rows independent. x is [n, B, ...]; params holds its
        own tensors and the tied ones by name; key is int64 [n, 2] if it ``draws``, else None.
      infer: (params, buffers, x) -> y.
      site: what a slot behind this block sees; None if no slot may sit there (the last block gives the logits).
      flops: multiply-adds per sample of one forward pass.
      ties: tensors of earlier blocks that it reads too. They are trained once, with the sum of all gradients.
      draws: whether training draws random numbers, as dropout does.
      one: where the block comes from a ``torch.nn.Module``, what it is for one network; its names are the module's.
    """

    params: tuple[Param, ...]
    buffers: tuple[Param, ...]
    train: BlockTrain
    infer: BlockInfer
    site: Site | None
    flops: int
    ties: tuple[Tie, ...] = ()
    draws: bool = False
    one: OneNetwork | None = None

    @property
    def layout(self) -> Layout:
        """Flat row of the tensors it owns."""
        return Layout(self.params)

    @property
    def reads(self) -> Layout:
        """Flat row of all tensors it computes with: those it owns, then the tied ones."""
        return Layout((*self.params, *(tie.param for tie in self.ties)))

    @property
    def buffer_layout(self) -> Layout:
        """Flat row of the buffers."""
        return Layout(self.buffers)


def plain_block(
    params: tuple[Param, ...],
    apply: Callable[[Params, Tensor], Tensor],
    site: Site | None,
    flops: int,
    ties: tuple[Tie, ...] = (),
) -> HostBlock:
    """A block without buffers, which computes the same in training and in inference.

    Args:
      params, site, flops, ties: as in ``HostBlock``.
      apply: (params, x) -> y; pure, rows independent.
    """

    def train(params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
        del key
        return apply(params, x), buffers

    def infer(params: Params, buffers: Params, x: Tensor) -> Tensor:
        del buffers
        return apply(params, x)

    return HostBlock(params, (), train, infer, site, flops, ties)


class Host(NamedTuple):
    """A network in blocks; the last gives logits [n, B, num_classes] (or [n, B, T, vocabulary]).

    Attributes:
      name: for people.
      input_shape: shape of one sample.
      num_outputs: classes C of the logits' last dimension.
      blocks: in order.
      takes_tokens: whether inputs are int64 tokens in [0, C), with a prediction at every position, instead of floating
        features.
    """

    name: str
    input_shape: tuple[int, ...]
    num_outputs: int
    blocks: tuple[HostBlock, ...]
    takes_tokens: bool = False

    @property
    def num_params(self) -> int:
        """Trained numbers per network; a tied tensor counts once."""
        return sum(block.layout.size for block in self.blocks)

    @property
    def layout(self) -> Layout:
        """Flat row of all trained tensors, block by block."""
        return Layout(tuple(param for block in self.blocks for param in block.params))

    @property
    def sites(self) -> dict[int, Site]:
        """Block index -> site, for every block that a slot may follow."""
        return {index: block.site for index, block in enumerate(self.blocks) if block.site is not None}

    @property
    def points(self) -> dict[str, Site]:
        """Name -> site of every point, in order: ``input``, ``block0`` (behind the first block), ..., ``logits``."""
        length = self.input_shape if self.takes_tokens else ()
        found = {"input": Site("tokens" if self.takes_tokens else _kind(self.input_shape), self.input_shape, 0)}
        found |= {f"block{index}": site for index, site in self.sites.items()}
        return found | {"logits": Site("logits", (*length, self.num_outputs), len(length), 0 if length else None)}


def _kind(shape: tuple[int, ...]) -> str:
    return {1: "vector", 3: "conv"}.get(len(shape), "input")


def check_ties(host: Host) -> None:
    """Check that every tie names a tensor of an earlier block, and that no block reads two tensors of one name.

    Raises:
      ConfigError: the first tie or name that is wrong.
    """
    for index, block in enumerate(host.blocks):
        names = [param.name for param in block.reads.params]
        if len(set(names)) != len(names):
            raise ConfigError(f"host {host.name!r}, block {index}: parameters {names}; expected distinct names")
        for tie in block.ties:
            owned = host.blocks[tie.block].params if 0 <= tie.block < index else ()
            if tie.param not in owned:
                raise ConfigError(
                    f"host {host.name!r}, block {index}: tied to {tie.param.name!r} of block {tie.block}; "
                    f"expected a tensor that a block before {index} owns"
                )
