"""A checked function raises when it writes into an argument, and is the function itself otherwise."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.autograd import forward_ad

from esper.utils.purity import PurityError, leaves, pure, untouched

NAN = float("nan")


class LeafPair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False)
class Fixed:
    table: Tensor
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Equal:
    table: Tensor


def nest():
    return {
        "bare": torch.tensor([1.0, NAN, 3.0]),
        "scalar": torch.tensor(NAN),
        "pair": LeafPair(torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool)),
        "listed": [torch.arange(3), {"deep": torch.ones(2, dtype=torch.float64)}],
        "dict": TensorDict({"a": torch.zeros(2), "b": TensorDict({"c": torch.zeros(2, 2)}, [2])}, [2]),
        "array": np.zeros(3),
        "fixed": Fixed(torch.zeros(2)),
        "equal": Equal(torch.zeros(2)),
        "rest": (None, 1, "text", 2.0),
    }


WRITES = {
    "x.bare": lambda x: x["bare"].add_(1),
    "x.scalar": lambda x: x["scalar"].fill_(0.0),
    "x.pair.first": lambda x: x["pair"].first[0].copy_(torch.ones(3)),
    "x.pair.second": lambda x: x["pair"].second.logical_not_(),
    "x.listed.0": lambda x: x["listed"][0].__setitem__(1, 7),
    "x.listed.1.deep": lambda x: x["listed"][1]["deep"].mul_(2),
    "x.dict.a": lambda x: x["dict"].set_("a", torch.ones(2)),
    "x.dict.b.c": lambda x: x["dict"]["b"].update_({"c": torch.ones(2, 2)}),
    "x.array": lambda x: x["array"].__setitem__(0, 1.0),
    "x.fixed.table": lambda x: x["fixed"].table.add_(1),
    "x.equal.table": lambda x: x["equal"].table.add_(1),
}


@pytest.mark.parametrize("path", WRITES)
def test_a_write_is_named(path):
    @pure
    def careless(number, x):
        WRITES[path](x)
        return number

    with pytest.raises(PurityError) as error:
        careless(1, nest())
    message = str(error.value)
    assert message.endswith(f"careless: changed the bits of {path}; expected its arguments untouched")
    assert "\n" not in message
    with pytest.raises(PurityError, match=f"bits of {path};"):
        careless(number=1, x=nest())


def test_bits_that_are_written_back_are_a_write():
    @pure
    def undone(x):
        x.add_(1).sub_(1)

    with pytest.raises(PurityError, match=r"undone: wrote into x \(version 2, 0 before\); expected"):
        undone(torch.zeros(3))


def test_a_write_past_the_version_counter_is_seen():
    @pure
    def kernel(x):
        x.numpy()[0] = 1.0

    with pytest.raises(PurityError, match=r"kernel: changed the bits of x;"):
        kernel(torch.zeros(3))


def test_a_version_is_looked_at_without_bits_too():
    x = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with untouched("somebody", x, bits=False):
        x["a"].numpy()[0] = 1.0  # which nobody counts
    wrote = pytest.raises(PurityError, match=r"^somebody: wrote into b \(version 1, 0 before\); expected")
    with wrote, untouched("somebody", x, bits=False):
        x["b"].add_(0)


def test_zero_and_minus_zero_differ_and_so_do_two_nans():
    @pure
    def set_to(x, value):
        x.copy_(value)

    for before, after in ((0.0, -0.0), (NAN, -NAN)):
        with pytest.raises(PurityError, match="bits"):
            set_to(torch.tensor([before]), torch.tensor([after]))


def test_a_field_that_is_exchanged_added_or_removed_is_seen():
    @pure
    def exchange(x):
        x["a"] = x["a"].clone()

    @pure
    def add(x):
        x["b"] = x["a"]

    @pure
    def remove(x):
        del x["a"]

    for function, said in ((exchange, "exchanged x.a"), (add, "added or removed x.b"), (remove, "removed x.a")):
        with pytest.raises(PurityError, match=said):
            function(TensorDict({"a": torch.zeros(2)}, [2]))


@pure
def double(x, factor=2):
    """Twice."""
    return x * factor


def test_a_pure_function_is_itself():
    x = torch.tensor([1.0, NAN]).expand(3, 2)
    assert torch.equal(double(x).nan_to_num(), (x * 2).nan_to_num())
    assert double.__name__ == "double" and double.__doc__ == "Twice."
    for empty in (torch.zeros(0), torch.zeros(2, 0)):
        double(empty)


def test_it_checks_below_every_derivative():
    x = torch.tensor([1.0, 2.0])
    assert torch.func.grad(lambda x: double(x).sum())(x).tolist() == [2.0, 2.0]
    assert torch.func.jvp(double, (x,), (x,))[1].tolist() == [2.0, 4.0]
    assert torch.func.vmap(torch.func.grad(double))(x).tolist() == [2.0, 2.0]
    leaf = x.clone().requires_grad_()
    assert torch.autograd.grad(double(leaf).sum(), leaf)[0].tolist() == [2.0, 2.0]
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(double(forward_ad.make_dual(x, x))).tangent.tolist() == [2.0, 4.0]
    with torch.inference_mode():
        assert double(x + 0).tolist() == [2.0, 4.0]


@pytest.mark.parametrize("transform", ["grad", "vmap", "inference"])
def test_it_sees_writes_below_transforms(transform):
    @pure
    def careless(x):
        x.mul_(2)
        return x.sum()

    with pytest.raises(PurityError, match="bits of x"):
        if transform == "inference":
            with torch.inference_mode():
                careless(torch.ones(2))
        elif transform == "grad":
            torch.func.grad(lambda x: careless(x * 1))(torch.ones(2))
        else:
            torch.func.vmap(careless)(torch.ones(2, 2))


def test_torch_compile_traces_the_function_itself():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: double(double(x)), fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [4.0, 4.0]


def test_leaves_of_a_structure_are_listed_once():
    fixed = Fixed(torch.zeros(1))
    assert [path for path, _ in leaves({"s": fixed})] == ["s.table"]
    assert next(leaves(fixed, "s"))[1] is fixed.table
