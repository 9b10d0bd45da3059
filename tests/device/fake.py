"""A device that is not there: tensors that have a place, sizes and types, but no values; and what crosses to and fro.

Under torch's fake mode tensors of any device can be computed with on any machine. Whatever asks one for a value raises,
and so does an operation on tensors of two devices. The stand-in is torch's device type "lazy": unlike "cuda", gradients
of its tensors are computed without asking for streams of a driver that is not there. Nothing of torch's lazy backend
runs. What is copied from one device to another is noted.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from esper.engine import Engine
from esper.kasmina.structure import build_structure
from esper.tezzeret import eager
from esper.utils.tree import map_leaves

THERE = torch.device("lazy:0")

CPU_TYPE, LAZY_TYPE = 0, 17
"""Numbers of device types, as torch's DeviceType has them."""


def lend_guard() -> None:
    """Let the CPU's device guard, which does nothing, serve the stand-in, for which torch ships none."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (LAZY_TYPE + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[LAZY_TYPE] = guards[LAZY_TYPE] or guards[CPU_TYPE]


class Crossings(TorchDispatchMode):
    """Notes every copy between devices, as (to, bytes); who asks for a value gets the device's answer, if any."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type in self.answers:
            self.asked.append(args[0].device.type)
            return self.answers[args[0].device.type]
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            if source.device.type != result.device.type:
                self.seen.append((result.device.type, source.numel() * source.element_size()))
        return result

    def count(self, device: torch.device) -> int:
        return sum(to == device.type for to, _ in self.seen)

    @property
    def uploads(self) -> int:
        return self.count(THERE)

    @property
    def downloads(self) -> int:
        return self.count(torch.device("cpu"))


@contextmanager
def device() -> Iterator[tuple[Callable[[Any], Any], Crossings]]:
    """A block in which there is such a device: (what brings a tree of real tensors there, what crosses)."""
    lend_guard()
    mode, crossings = FakeTensorMode(), Crossings()

    def bring(tree: Any) -> Any:
        if isinstance(tree, TensorDictBase):
            return tree.apply(bring)
        if isinstance(tree, Tensor):
            return mode.from_tensor(tree).to(THERE)
        return map_leaves(lambda leaf: bring(leaf) if isinstance(leaf, Tensor | TensorDictBase) else leaf, tree)

    with mode, crossings:
        yield bring, crossings


def engine_there(engine: Engine, bring: Callable[[Any], Any], padded: bool = False) -> Engine:
    """The engine on the device, run by the definition; plans padded as compiled code needs them, or not."""
    own = engine.structure
    structure = build_structure(own.config, own.host, own.blueprints, own.objective, THERE)
    data = engine.data._replace(**{name: bring(part) for name, part in engine.data.parts.items()})
    backend = eager.build(structure, THERE)
    if padded:
        backend = backend._replace(plan_with=partial(eager.plan_with, structure, padded=True))
    return Engine(structure, backend, bring(engine.hypers), data, engine.scales)
