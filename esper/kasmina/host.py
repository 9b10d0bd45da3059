"""Hosts: the network that learns the task, as a row of stages with a site after each but the last."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from esper.kasmina.layout import Layout, Param, Params
from esper.kasmina.site import Site

StageForward = Callable[[Params, Params, Tensor], Tensor]
StageTrain = Callable[[Params, Params, Tensor], tuple[Tensor, Params]]


class HostStage(NamedTuple):
    """One stretch of a host.

    Attributes:
      params: trained tensors.
      buffers: tensors that are not trained (running statistics); ``init`` must be "constant".
      train: (params, buffers, x) -> (y, new buffers); pure, rows independent. x is [n, B, ...].
      infer: (params, buffers, x) -> y.
      site: what a slot after this stage sees; None if no slot may sit there (the last stage gives the logits).
      flops: multiply-adds per sample of one forward pass.
    """

    params: tuple[Param, ...]
    buffers: tuple[Param, ...]
    train: StageTrain
    infer: StageForward
    site: Site | None
    flops: int

    @property
    def layout(self) -> Layout:
        """Flat row of the trained tensors."""
        return Layout(self.params)

    @property
    def buffer_layout(self) -> Layout:
        """Flat row of the buffers."""
        return Layout(self.buffers)


class Host(NamedTuple):
    """A network in stages; the last gives logits [n, B, num_classes] (or [n, B, T, vocabulary]).

    Attributes:
      name: for people.
      input_shape: shape of one sample.
      num_outputs: classes C of the logits' last dimension.
      stages: in order.
    """

    name: str
    input_shape: tuple[int, ...]
    num_outputs: int
    stages: tuple[HostStage, ...]

    @property
    def num_params(self) -> int:
        """Trained numbers per network."""
        return sum(stage.layout.size for stage in self.stages)

    @property
    def sites(self) -> dict[int, Site]:
        """Stage index -> site, for every stage that a slot may follow."""
        return {index: stage.site for index, stage in enumerate(self.stages) if stage.site is not None}
