"""Kernels of one minibatch and of one inference, counted in what Inductor writes on a CPU for the graphs of a GPU.

On a GPU the definition is compiled as two graphs: a minibatch (forward pass, gradients, clipping and optimizer) and the
inference of all lanes. Here both are compiled for the CPU, down to the C++ that Inductor writes; nothing of it is
built or run. Counted is what a call launches: kernels that Inductor generated, and calls of library functions. On a CPU
one generated function holds every loop nest between two library calls, whether it depends on the one before or not, so
the nests are counted too: a GPU launches no fewer kernels than functions, and about one for every nest.

Every blueprint that fits is in the graph, whatever seeds there are, and the number of its rows is symbolic: neither
seeds nor the number of environments change the counts.
"""

import argparse
import ast
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

import esper
from esper.bench.case import mixed
from esper.engine import Engine
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.learners import learners_of
from esper.leyline.stages import ACTIVE
from esper.runtime.tasks import TASKS, named
from esper.tezzeret.batches import batch_at
from esper.tezzeret.inductor.graph import build_graph
from esper.tolaria.training import draw_batches

LIBRARY = ("extern_kernels.", "torch.ops.", "aten.")
"""How calls of library functions begin in what Inductor writes."""


class KernelCounts(NamedTuple):
    """What one call of a graph launches.

    Attributes:
      generated: calls of functions that Inductor wrote.
      library: calls of others: matrix products and what Inductor has no code for.
      nests: loop nests within the generated functions.
      copies: those of them that load and store, and compute nothing; those that transpose are not counted.
    """

    generated: int
    library: int
    nests: int
    copies: int

    @property
    def launched(self) -> int:
        """Generated functions and library calls."""
        return self.generated + self.library


class Written(BaseException):
    """A graph has been written down and is about to run. Not an ``Exception``: a backend would run it uncompiled."""


def count_kernels(source: str) -> KernelCounts:
    """Counts of a module that Inductor wrote for a CPU; whatever branches it has, every call in it counts once."""
    tree = ast.parse(source)
    kernels = {name: list(nests_of(text)) for name, text in _kernels(tree)}
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    generated = [name for name in called if name in kernels]
    library = sum(name.startswith(LIBRARY) for name in called)
    nests = [nest for name in generated for nest in kernels[name]]
    return KernelCounts(len(generated), library, len(nests), sum(map(copies, nests)))


def _kernels(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name and C++ of every generated function."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and len(node.value.args) == 2:
            name, text = node.targets[0], node.value.args[1]
            if ast.unparse(node.value.func) == "async_compile.cpp_pybinding":
                assert isinstance(name, ast.Name) and isinstance(text, ast.Constant)
                yield name.id, str(text.value)


def nests_of(text: str) -> Iterator[str]:
    """Loop nests of a generated function: the blocks that lie side by side in its body."""
    depth, body, begun = 0, text[text.index("kernel(") :], 0
    for place, letter in enumerate(body):
        if letter == "{":
            depth += 1
            begun = place if depth == 2 else begun
        elif letter == "}":
            if depth == 2 and "_ptr" in body[begun:place]:  # others are initial values
                yield body[begun:place]
            depth -= 1


def copies(nest: str) -> bool:
    """Whether all that a loop nest names is what it loads."""
    named = re.findall(r"auto tmp\d+ = ([^;]*);", nest)
    return all("_ptr" in value and "tmp" not in value for value in named) and "acc" not in nest


@contextmanager
def noting_code() -> Iterator[list[str]]:
    """A context in which what Inductor writes is noted, and raises ``Written`` where it would be run."""
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.graph import GraphLowering

    def stop(*arguments: Any) -> None:
        raise Written

    codes = list[str]()
    with ExitStack() as stack:
        stack.enter_context(config.patch(fx_graph_cache=False))
        stack.enter_context(patch.object(GraphLowering, "save_output_code", codes.append))
        stack.enter_context(patch.object(AsyncCompile, "cpp_pybinding", lambda compiler, types, source: stop))
        yield codes


def counted(run: Callable[[], Any]) -> KernelCounts:
    """Counts of the one graph that a call compiles.

    Raises:
      RuntimeError: it compiles none, or more than one before it runs.
    """
    torch._dynamo.reset()
    with noting_code() as codes, suppress(Written):
        run()
    if len(codes) != 1:
        raise RuntimeError(f"kernel counts: {len(codes)} graphs were written; expected 1")
    return count_kernels(codes[0])


def graphs_of(engine: Engine) -> dict[str, Callable[[], Any]]:
    """By name, the calls that compile the graphs of an engine; half of its slots hold seeds."""
    structure, hypers, data = engine.structure, engine.hypers, engine.data
    backend, state = build_graph(structure), mixed(engine, 0.5, ACTIVE)
    table, learners, alphas = take_table(state.slots), learners_of(state), state.slots.alpha
    plan = backend.plan(table, torch.device("cpu"))
    batch, wanted = batch_at(structure, draw_batches(engine.config, state, data), 0), single_changes(table)
    return {
        "minibatch": lambda: backend.minibatch_step(hypers, plan, learners, alphas, batch),
        "inference": lambda: backend.evaluate(hypers, plan, learners, alphas, data.validation.samples, wanted),
    }


def main() -> int:
    """Count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits_v1", choices=tuple(TASKS), help="default digits_v1")
    parser.add_argument("--envs", type=int, default=16, help="environments that the compiler sees (default 16)")
    parser.add_argument("--graph", default="", choices=("", "minibatch", "inference"), help="default: both")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = esper.make(named(options.task), options.envs, backend="eager")
    for name, run in graphs_of(engine).items():
        if options.graph in ("", name):
            begun = time.perf_counter()
            found = counted(run)
            facts = {"task": options.task, "envs": options.envs, "graph": name, "launched": found.launched}
            print(json.dumps(facts | found._asdict() | {"seconds": round(time.perf_counter() - begun)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
