"""What can be asked for: the operations as values, what they are tried on, and what they give."""

from typing import NamedTuple

from torch import Tensor

from esper.tezzeret.surgery.anatomy import Anatomy, Learned


class InsertLayer(NamedTuple):
    """A new layer that passes on what it sees: outputs stay as they are.

    Attributes:
      name: of the new layer; its tensors are ``name.weight`` and ``name.bias``.
      after: the layer behind whose norm and activation it comes.
      activation: "relu" (behind features that are not negative) or "none".
      kernel: odd side, where features are maps.
      norm: "batch": a batch norm behind it, in place of its bias, with what samples show as its statistics, undone by
        its weights, so that it passes on what it sees, too; "none"; "same": whatever the layer before it has. Where a
        host's layers have norms, it trains at rates that a layer without one does not stand.
    """

    name: str
    after: str
    activation: str = "relu"
    kernel: int = 3
    norm: str = "same"


class RemoveLayer(NamedTuple):
    """A layer with its norm and activation goes; what it read goes where it went.

    Where channels differ, a 1x1 projection bridges them, which starts as the middle of the removed kernel. A way around
    the layer alone stays, and the layer's part in the sum goes.
    """

    name: str


class ModifyLayer(NamedTuple):
    """Another width, or another kernel.

    Attributes:
      name: the layer.
      width: its units.
      kernel: odd side of its kernel. A larger one starts with zeros around the old: outputs stay.
      start: of new units; one of ``esper.tezzeret.surgery.starts.STARTS``. Of fewer units, those with the largest
        product of the norms of what makes and what reads them stay, in every network its own.
    """

    name: str
    width: int | None = None
    kernel: int | None = None
    start: str = "net2net"


class AddSkip(NamedTuple):
    """A way around: what a layer gives is added behind a later one.

    Attributes:
      source, target: layers; the way leads from behind the norm and activation of one to behind those of the other.
      start: "identity": what it carries is added as it is; where shapes differ, through a mean over positions and a 1x1
        projection that passes channels on. "zero": through a 1x1 projection of zeros, so that outputs stay.
    """

    source: str
    target: str
    start: str = "identity"


class Rewire(NamedTuple):
    """A layer reads what another one gives.

    Attributes:
      name: the layer.
      source: the layer behind whose norm and activation it reads from now on; "input": what the network reads.
    """

    name: str
    source: str


class RemoveFossil(NamedTuple):
    """A fossilized seed goes, and its slot is empty again. It lies in a state: see ``esper.tolaria.operating.excise``.

    Attributes:
      slot: its number.
    """

    slot: int


Operation = InsertLayer | RemoveLayer | ModifyLayer | AddSkip | Rewire | RemoveFossil


class Samples(NamedTuple):
    """What an operation is tried on.

    Attributes:
      inputs: [B, *input_shape].
      targets: int64 [B]; or [B, T] of tokens.
    """

    inputs: Tensor
    targets: Tensor


class Operand(NamedTuple):
    """What lies on the table.

    Attributes:
      body: of all networks.
      learned: of each.
      samples: to measure on.
      key: int64 [E, 2]; of what is drawn.
    """

    body: Anatomy
    learned: Learned
    samples: Samples
    key: Tensor

    @property
    def inputs(self) -> Tensor:
        """The samples' inputs for every network, [E, B, ...]."""
        inputs = self.samples.inputs
        return inputs.expand(len(self.key), *inputs.shape)


class Altered(NamedTuple):
    """What an operation gives.

    Attributes:
      body, learned: the new ones.
      preserves: whether outputs must be as before.
    """

    body: Anatomy
    learned: Learned
    preserves: bool
