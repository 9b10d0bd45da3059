"""The native network: a structure's blocks, seeds and gates as programs, and the way between them."""

from typing import NamedTuple

from torch import Tensor

from esper.kasmina.structure import Structure
from esper.tezzeret.native.programs import NetworkProgram


class Network(NamedTuple):
    """What the library runs.

    Attributes:
      structure: what it was made from.
      train: of blocks in training form, and slots.
      infer: likewise in inference form.
      tracked: int64 [1, N]; per number of a host's buffers, the place in ``aux`` that it follows.
      seeds_tracked: per slot int64 [K, R]; the same of each blueprint's buffers, -1 behind its last.
    """

    structure: Structure
    train: NetworkProgram
    infer: NetworkProgram
    tracked: Tensor
    seeds_tracked: tuple[Tensor, ...]
