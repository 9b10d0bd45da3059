"""Every private name of torch and tensordict that Esper uses, and what is done where a version of torch lacks it.

torch promises nothing about these names, so no other module uses one. What a missing name would have said is taken to
be the answer that is slower, and still right; where there is none, the loud one.
"""

import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from tensordict import TensorDict, TypedTensorDict
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

_FUNCTORCH = getattr(torch._C, "_functorch", None)
_INTERPRETER_STACK = getattr(_FUNCTORCH, "peek_interpreter_stack", None)
_IS_BATCHED = getattr(_FUNCTORCH, "is_batchedtensor", None)
_DISABLE_TRANSFORMS = getattr(torch._C, "_DisableFuncTorch", None)
_NEW_TREE = getattr(TensorDict, "_new_unsafe", None)
_WRAP_TREE = getattr(TypedTensorDict, "_wrap_td", None)
_DISPATCH_MODES = getattr(torch._C, "_len_torch_dispatch_stack", None)
_SET_FORWARD_MODE = getattr(forward_ad, "_set_fwd_grad_enabled", None)

Tree = TypeVar("Tree", bound=TypedTensorDict)


DispatchMode: Any = _python_dispatch.TorchDispatchMode
"""Base of contexts that see every operation; torch documents it, and has no other place for it."""

_LISTENERS: list[Callable[[Any], None]] = []


def is_transforming() -> bool:
    """Whether a transform of ``torch.func`` is running. Without the name: yes, so that every tensor is asked."""
    return _INTERPRETER_STACK is None or _INTERPRETER_STACK() is not None


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is numbers on the CPU and nothing watches operations. Without the name: no, which is slower."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and _DISPATCH_MODES is not None
        and _DISPATCH_MODES() == 0
        and not is_transforming()
    )


def is_batched(tensor: Tensor) -> bool:
    """Whether the outermost wrapper of a wrapped tensor is vmap's. Without the name: yes, and vmap is refused."""
    return _IS_BATCHED is None or _IS_BATCHED(tensor)


def below_transforms() -> AbstractContextManager[object]:
    """A context in which operations act on unwrapped tensors as if no transform ran. Without the name: no change."""
    return nullcontext() if _DISABLE_TRANSFORMS is None else _DISABLE_TRANSFORMS()


def in_forward_mode() -> bool:
    """Whether a level of plain forward mode is open. Without the name: yes, so that every tensor is asked."""
    return bool(getattr(forward_ad, "_current_level", 0) >= 0)


def without_forward_mode() -> AbstractContextManager[object]:
    """A context without plain forward mode. Without the name: no change."""
    return nullcontext() if _SET_FORWARD_MODE is None else _SET_FORWARD_MODE(False)


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor shares its memory with another as autograd sees it. Without the name: yes; it is copied."""
    ask = getattr(tensor, "_is_view", None)
    return ask is None or bool(ask())


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written into; not of one that was made in inference mode. Without the name: None."""
    return getattr(tensor, "_version", None)


def mark_rows(tensor: Tensor) -> None:
    """Let dimension 0 of an argument of compiled code vary. Without the name: every length is compiled anew."""
    mark = getattr(torch._dynamo, "mark_dynamic", None)
    if mark is not None:
        mark(tensor, 0)


def without_duck_shapes() -> AbstractContextManager[object]:
    """A context in which compiled code takes no two sizes to be equal for being so now. Without it: recompilations."""
    config = getattr(torch.fx.experimental, "_config", None)
    return nullcontext() if config is None else config.patch(use_duck_shape=False)


def default_inductor_cache() -> str | None:
    """Where Inductor keeps compiled code unless it is told otherwise. Without the name: None, as if nothing was set."""
    try:
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    except ImportError:
        return None
    return str(default_cache_dir())


def use_compiler(program: str) -> None:
    """Let Inductor use a C++ compiler where the one it would take does not run. Without the name: no change."""
    from torch._inductor import config  # it takes a second to import

    own = getattr(getattr(config, "cpp", None), "cxx", None)
    named = own if isinstance(own, tuple | list) else (own,)
    if own is not None and not any(isinstance(name, str) and shutil.which(name) for name in named):
        config.cpp.cxx = (None, program)


def compile_errors() -> tuple[type[Exception], ...]:
    """What torch.compile raises where it cannot compile a function. Without the names: no such error is known."""
    from torch.fx.experimental import symbolic_shapes  # loaded by torch.compile; slow to import otherwise

    known = getattr(getattr(torch._dynamo, "exc", None), "TorchDynamoException", None)
    violated = getattr(symbolic_shapes, "ConstraintViolationError", None)
    return tuple(kind for kind in (known, violated) if kind is not None)


@contextmanager
def without_guard_log() -> Iterator[None]:
    """A context in which torch does not log a refusal of its own compiler, line by line, before it raises it."""
    log = logging.getLogger("torch._guards")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def on_compilation(begun: Callable[[Any], None], ended: Callable[[Any], None] = lambda told: None) -> Iterator[None]:
    """A context in which functions hear of every compilation, of a frame or a backward, in the thread that compiles;
    ``ended`` of those alone that torch tells of. Without it: a warning.
    """
    from torch._dynamo import callback  # it takes a second to import

    handler = getattr(callback, "callback_handler", None)
    if handler is None:
        warnings.warn(f"torch {torch.__version__} does not tell of compilations: none is counted", stacklevel=3)
        yield
        return
    handler.register_start_callback(begun)
    handler.register_end_callback(ended)
    _LISTENERS.append(begun)
    try:
        yield
    finally:
        _LISTENERS.remove(begun)
        handler.remove_start_callback(begun)
        handler.remove_end_callback(ended)


def graph_cache() -> tuple[int, int]:
    """Hits and misses of torch's own cache of compiled graphs. Without the names, or unused so far: none."""
    loaded = sys.modules.get("torch._dynamo.utils")
    counted = getattr(loaded, "counters", {}).get("inductor", {})
    return int(counted.get("fxgraph_cache_hit", 0)), int(counted.get("fxgraph_cache_miss", 0))


def tell_of_compilation(what: str) -> None:
    """Let ``on_compilation`` hear of a compilation that torch does not tell of."""
    for begun in tuple(_LISTENERS):
        begun(what)


def below_maps(tensor: Tensor) -> tuple[Tensor, int]:
    """What lies below all wrappers of vmap, their dimensions in front, outermost first; and how many there are.

    Without the names: the tensor itself, which is known to nobody then.
    """
    inside, place = getattr(_FUNCTORCH, "get_unwrapped", None), getattr(_FUNCTORCH, "maybe_get_bdim", None)
    if inside is None or place is None or _IS_BATCHED is None or not _IS_BATCHED(tensor):
        return tensor, 0
    below, count = below_maps(inside(tensor).movedim(place(tensor), 0))
    return below, count + 1


def replaced(tree: Tree, fields: dict[str, Any]) -> Tree | None:
    """``TypedTensorDict.replace`` in a tenth of its time, which is a third of a small environment step.

    Args:
      tree: of tensors and of trees, on no device in particular.
      fields: what is put in place of its own.

    Returns:
      an open copy, its parts open copies; None where the plain way must be taken: without the names, under a compiler
      or a transform, or where a field is none of the tree's or has another batch size.
    """
    held = getattr(getattr(tree, "_source", None), "_tensordict", None)
    if held is None or _NEW_TREE is None or _WRAP_TREE is None or torch.compiler.is_compiling() or is_transforming():
        return None
    size = tree.batch_size
    if any(name not in held or value.shape[: len(size)] != size for name, value in fields.items()):
        return None
    return _copy(tree, held | fields)


def parts_of(tree: TypedTensorDict) -> Mapping[str, Any]:
    """A tree's tensors and trees by name, in a fifth of the time that asking for an attribute takes.

    Without the names: asked for one by one.
    """
    held = getattr(getattr(tree, "_source", None), "_tensordict", None)
    return {name: getattr(tree, name) for name in tree.keys()} if held is None else held  # noqa: SIM118


def _copy(tree: Tree, fields: dict[str, Any]) -> Tree:
    """A tree of these fields; parts that are trees are copied, so that a lock of one is not the other's."""
    own = {
        name: each if isinstance(each, Tensor) else _copy(each, each._source._tensordict)
        for name, each in fields.items()
    }
    assert _NEW_TREE is not None
    copy: Tree = type(tree)._wrap_td(_NEW_TREE(own, batch_size=tree.batch_size))
    return copy
