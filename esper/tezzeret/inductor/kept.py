"""Units that are traced, compiled once, and kept on disk.

A unit is pure and made of torch's operators alone, and its arguments differ in their number of rows only. So a trace
of it is all of it, the code made from the trace needs no guard, and the next process can take it as it is: what
tells it apart from others is its trace at two numbers of rows, with sizes as they are, which is found quickly.
"""

import contextlib
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.tezzeret.inductor import store
from esper.tezzeret.inductor.plainly import Refused
from esper.tezzeret.inductor.signature import Signature, signature_of
from esper.utils.torch_private import compile_into, tell_of_compilation, trace_graph, trace_rows
from esper.utils.tree import leaves_of, map_leaves

FEW = (3, 5)
"""Numbers of rows at which a unit is traced to tell it from others."""

USUAL = 64
"""The number of rows that the compiler takes for usual."""

SETTINGS = {"layout_optimization": False}
"""Of Inductor, for units."""


class Job(NamedTuple):
    """A function written down: all that a compiler needs to know, in any process."""

    name: str
    code: str  # of a graph
    signature: Signature  # constants included


class Traced(NamedTuple):
    """What a trace found.

    Attributes:
      graph: takes the arguments, then the constants.
      constants: tensors that the function refers to.
      tree: the nest that it returns, with something at every leaf.
    """

    graph: torch.fx.GraphModule
    constants: tuple[Tensor, ...]
    tree: Any


def trace(function: Callable[..., Any], take: Callable[[Callable[..., Any]], torch.fx.GraphModule]) -> Traced:
    """Trace a function.

    Args:
      function: of tensors; what it returns is a nest of tensors.
      take: traces a function that returns a tuple of tensors.

    Raises:
      Refused: it cannot be traced.
    """
    trees = []

    def flat(*arguments: Tensor) -> tuple[Tensor, ...]:
        result = function(*arguments)
        trees.append(map_leaves(lambda leaf: 0, result))
        return tuple(leaves_of(result))

    try:
        graph = take(flat)
    except Exception as error:  # of the function, or of tracing: whoever calls the function as it stands will know
        raise Refused(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from error
    return Traced(graph, _lift_constants(graph), trees[-1])


def _lift_constants(graph: torch.fx.GraphModule) -> tuple[Tensor, ...]:
    """Make arguments of the tensors that a graph holds, in the order of their first use."""
    found: dict[str, torch.fx.Node] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        if node.target not in found:
            with graph.graph.inserting_after(last):
                last = found[node.target] = graph.graph.placeholder(f"constant_{len(found)}")
        node.replace_all_uses_with(found[node.target])
        graph.graph.erase_node(node)
    constants = tuple(getattr(graph, name) for name in found)
    for name in found:
        delattr(graph, name)
    graph.recompile()
    return constants


class Identified(NamedTuple):
    """A function that is told from others.

    Attributes:
      name: equal for equal functions in equal surroundings.
      constants, tree: as in ``Traced``.
    """

    name: str
    constants: tuple[Tensor, ...]
    tree: Any


def identify(function: Callable[..., Any], signature: Signature) -> Identified:
    """Tell a function from others.

    Raises:
      Refused: it cannot be traced.
    """
    counts, around, threads = FEW if signature.varies else FEW[:1], store.surroundings(), torch.get_num_threads()
    torch.set_num_threads(1)  # what is computed is tiny
    try:
        found = [trace(function, partial(trace_graph, arguments=signature.example(rows))) for rows in counts]
    finally:
        torch.set_num_threads(threads)
    whole = _with_constants(signature, found[0].constants)
    known = ([each.graph.code for each in found], whole, USUAL, SETTINGS, around)
    return Identified(hashlib.sha256(repr(known).encode()).hexdigest()[:32], found[0].constants, found[0].tree)


def write_down(name: str, function: Callable[..., Any], signature: Signature) -> Job:
    """A function as a ``Job``.

    Raises:
      Refused: it cannot be traced for any number of rows.
    """
    traced = trace(function, lambda flat: trace_rows(flat, signature.example, USUAL))
    return Job(name, traced.graph.code, _with_constants(signature, traced.constants))


def compile_job(job: Job) -> None:
    """Compile a job and keep what comes of it.

    Raises:
      Exception: whatever the compiler raises.
    """
    store.keep(job.name, lambda path: compile_into(job.code, job.signature.example, USUAL, path, SETTINGS))


def _with_constants(signature: Signature, constants: tuple[Tensor, ...]) -> Signature:
    return Signature(signature.arguments + signature_of(constants, varies=False).arguments)


class Kept:
    """A function that is loaded from disk, or compiled and put there.

    Attributes:
      call: what was loaded; None as long as nothing was.
      job: the function written down, where it must be compiled; None where it need not be, or cannot.
    """

    def __init__(self, function: Callable[..., Any], signature: Signature) -> None:
        """Look for it on disk, and write it down if it is not there."""
        self.call: Callable[..., Any] | None = None
        self.job: Job | None = None
        self.done: Callable[[], None] | None = None
        self.refused: Refused | None = None
        try:
            self.name, self.constants, self.tree = identify(function, signature)
            self.call = store.find(self.name)
            if self.call is None:
                self.job = write_down(self.name, function, signature)
        except Refused as error:
            self.refused = error

    def __call__(self, *arguments: Tensor) -> Any:
        """Call it; it is compiled here and now if nobody else does that already.

        Raises:
          Refused: it cannot be compiled.
        """
        if self.call is None:
            self.call = self._made()
        leaves = iter(self.call(*arguments, *self.constants))
        return map_leaves(lambda leaf: next(leaves), self.tree)

    def _made(self) -> Callable[..., Any]:
        if self.refused is not None:
            raise self.refused
        assert self.job is not None
        try:
            with contextlib.suppress(Exception):  # of another process; if it is the job's fault, it shows again here
                if self.done is not None:
                    self.done()
            found = store.find(self.name)
            if found is None:
                tell_of_compilation(self.name)
                compile_job(self.job)
                found = store.find(self.name)
        except Exception as error:  # of AOT autograd, Inductor, the compiler, the linker, the file system
            raise Refused(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from error
        if found is None:
            raise Refused("what was compiled cannot be loaded")
        self.job = None
        return found


class OnlyTraced:
    """A function as its trace for any number of rows, run as it stands: what there is to compile, uncompiled."""

    def __init__(self, function: Callable[..., Any], signature: Signature) -> None:
        """Nothing is traced yet."""
        self.function, self.signature = function, signature
        self.traced: Traced | None = None

    def __call__(self, *arguments: Tensor) -> Any:
        """Call it.

        Raises:
          Refused: it cannot be traced.
        """
        if self.traced is None:
            tell_of_compilation("trace")
            self.traced = trace(self.function, lambda flat: trace_rows(flat, self.signature.example, USUAL))
        leaves = iter(self.traced.graph(*arguments, *self.traced.constants))
        return map_leaves(lambda leaf: next(leaves), self.traced.tree)
