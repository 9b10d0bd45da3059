"""Hosts: the network that learns the task, as a row of stages with a site after each but the last."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from esper.kasmina.layout import Layout, Param, Params
from esper.kasmina.site import Site
from esper.leyline.config import ConfigError

StageForward = Callable[[Params, Params, Tensor], Tensor]
StageTrain = Callable[[Params, Params, Tensor], tuple[Tensor, Params]]


class Tie(NamedTuple):
    """A trained tensor that an earlier stage owns and a later one reads too, as a tied head reads the embedding.

    Attributes:
      stage: index of the owner.
      param: the owner's entry for it.
    """

    stage: int
    param: Param


class HostStage(NamedTuple):
    """One stretch of a host.

    Attributes:
      params: trained tensors of its own.
      buffers: tensors that are not trained (running statistics); ``init`` must be "constant".
      train: (params, buffers, x) -> (y, new buffers); pure, rows independent. x is [n, B, ...]; params holds its own
        tensors and the tied ones by name.
      infer: (params, buffers, x) -> y.
      site: what a slot after this stage sees; None if no slot may sit there (the last stage gives the logits).
      flops: multiply-adds per sample of one forward pass.
      ties: tensors of earlier stages that it reads too. They are trained once, with the sum of all gradients.
    """

    params: tuple[Param, ...]
    buffers: tuple[Param, ...]
    train: StageTrain
    infer: StageForward
    site: Site | None
    flops: int
    ties: tuple[Tie, ...] = ()

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


def plain_stage(
    params: tuple[Param, ...],
    apply: Callable[[Params, Tensor], Tensor],
    site: Site | None,
    flops: int,
    ties: tuple[Tie, ...] = (),
) -> HostStage:
    """A stage without buffers, which computes the same in training and in inference.

    Args:
      params, site, flops, ties: as in ``HostStage``.
      apply: (params, x) -> y; pure, rows independent.
    """

    def train(params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
        return apply(params, x), buffers

    def infer(params: Params, buffers: Params, x: Tensor) -> Tensor:
        del buffers
        return apply(params, x)

    return HostStage(params, (), train, infer, site, flops, ties)


class Host(NamedTuple):
    """A network in stages; the last gives logits [n, B, num_classes] (or [n, B, T, vocabulary]).

    Attributes:
      name: for people.
      input_shape: shape of one sample.
      num_outputs: classes C of the logits' last dimension.
      stages: in order.
      takes_tokens: whether inputs are int64 tokens in [0, C), with a prediction at every position, instead of floating
        features.
    """

    name: str
    input_shape: tuple[int, ...]
    num_outputs: int
    stages: tuple[HostStage, ...]
    takes_tokens: bool = False

    @property
    def num_params(self) -> int:
        """Trained numbers per network; a tied tensor counts once."""
        return sum(stage.layout.size for stage in self.stages)

    @property
    def sites(self) -> dict[int, Site]:
        """Stage index -> site, for every stage that a slot may follow."""
        return {index: stage.site for index, stage in enumerate(self.stages) if stage.site is not None}


def check_ties(host: Host) -> None:
    """Check that every tie names a tensor of an earlier stage, and that no stage reads two tensors of one name.

    Raises:
      ConfigError: the first tie or name that is wrong.
    """
    for index, stage in enumerate(host.stages):
        names = [param.name for param in stage.reads.params]
        if len(set(names)) != len(names):
            raise ConfigError(f"host {host.name!r}, stage {index}: parameters {names}; expected distinct names")
        for tie in stage.ties:
            owned = host.stages[tie.stage].params if 0 <= tie.stage < index else ()
            if tie.param not in owned:
                raise ConfigError(
                    f"host {host.name!r}, stage {index}: tied to {tie.param.name!r} of stage {tie.stage}; "
                    f"expected a tensor that a stage before {index} owns"
                )
