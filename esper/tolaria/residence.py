"""Datasets that take turns on a device: at most so many bytes of them are there, and the least recently used goes.

A mixed run plays its tasks one after the other, so it needs the samples of one at a time. Each has a home on the host
(page-locked for a GPU). One that is brought is copied from there, and those that were used longest ago leave until it
fits; one that is larger than the limit is there alone. Tensors stay the same objects, whose samples come and go: what
asks for their shape, type or device gets the right answer but for the number of samples, and reading one that is away
raises. Bits are copied, so no result depends on the limit.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from esper.tolaria.data import Dataset, Part


class Lodger(NamedTuple):
    """A tensor of a dataset: as it is used, and its samples on the host."""

    used: Tensor
    home: Tensor


class Residence:
    """The datasets on one device.

    Attributes:
      most: bytes of inputs that may be there.
      loads, evictions: how often one came, and left.
    """

    def __init__(self, most: int) -> None:
        self.most, self.loads, self.evictions = most, 0, 0
        self._lodgers: dict[int, tuple[Lodger, ...]] = {}
        self._here: OrderedDict[int, int] = OrderedDict()

    @property
    def held(self) -> int:
        """Bytes of inputs that are there."""
        return sum(self._here.values())

    def lodge(self, dataset: Dataset) -> Dataset:
        """Take a dataset in: the same samples, which are away until they are brought. Those in files stay there."""
        own = {name: Part(_own(part.inputs), part.targets) for name, part in dataset.parts.items()}
        levels = dataset.at_levels and Part(_own(dataset.at_levels.inputs), dataset.at_levels.targets)
        lodged = dataset._replace(**own, at_levels=levels)  # type: ignore[arg-type]  # parts by their fields' names
        inputs = [part.inputs for part in (*own.values(), levels) if part is not None]
        lodgers = tuple(Lodger(each, _home(each)) for each in inputs if isinstance(each, Tensor))
        self._lodgers[_name(lodged)] = lodgers
        for lodger in lodgers:
            lodger.used.data = lodger.used[:0].clone()
        return lodged

    def bring(self, dataset: Dataset) -> None:
        """Have a dataset's samples on the device.

        Raises:
          KeyError: it was not taken in here.
        """
        name = _name(dataset)
        lodgers = self._lodgers[name]
        if name not in self._here:
            size = sum(lodger.home.nbytes for lodger in lodgers)
            while self._here and self.held + size > self.most:
                self._evict()
            for used, home in lodgers:
                used.data = home.clone() if used.device == home.device else home.to(used.device, non_blocking=True)
            self._here[name], self.loads = size, self.loads + 1
        self._here.move_to_end(name)

    def _evict(self) -> None:
        """Let the least recently used go."""
        name, _ = self._here.popitem(last=False)
        for used, _ in self._lodgers[name]:
            used.data = used[:0].clone()
        self.evictions += 1


def _name(dataset: Dataset) -> int:
    """Its training inputs, which are an object of its own."""
    return id(dataset.train.inputs)


def _own(inputs: Any) -> Any:
    return inputs.detach() if isinstance(inputs, Tensor) else replace(inputs)


def _home(inputs: Tensor) -> Tensor:
    home = inputs.to("cpu", copy=True)
    return home.pin_memory() if inputs.device.type == "cuda" else home
