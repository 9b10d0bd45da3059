"""Private names of torch: what is answered where a version of torch has them, and where it lacks them."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch.autograd import forward_ad

from esper.utils import torch_private as private
from esper.utils import transforms
from esper.utils.tree import leaves_of, map_leaves


class Step(NamedTuple):
    first: Any
    second: Any


def inside(transform, ask):
    """What a question answers about the argument of a transformed function."""
    found = []

    def function(x):
        found.append(ask(x))
        return (x * x).sum()

    transform(function)(torch.ones(3, 2))
    return found[-1]


def test_transforms_are_seen():
    assert not private.is_transforming() and not private.in_forward_mode()
    assert inside(torch.func.grad, lambda x: private.is_transforming())
    assert inside(torch.func.vmap, transforms.is_mapped) and not inside(torch.func.grad, transforms.is_mapped)
    with forward_ad.dual_level():
        assert private.in_forward_mode()


def test_below_transforms_tensors_are_plain():
    def bare(x):
        with private.below_transforms(), private.without_forward_mode():
            return float(transforms.unwrapped(x).sum())

    assert inside(torch.func.vmap, bare) == 6.0


def test_views_and_versions():
    x = torch.zeros(3)
    assert private.is_view(x[1:]) and not private.is_view(x)
    before = private.version_of(x)
    x.add_(1)
    assert private.version_of(x) == before + 1


@pytest.fixture
def poorer(monkeypatch):
    """A torch without the names."""
    for name in ("_INTERPRETER_STACK", "_IS_BATCHED", "_DISABLE_TRANSFORMS", "_SET_FORWARD_MODE"):
        monkeypatch.setattr(private, name, None)
    monkeypatch.setattr(private, "forward_ad", SimpleNamespace())
    monkeypatch.delattr(torch.fx.experimental, "_config")
    monkeypatch.delattr(torch._dynamo, "mark_dynamic")
    monkeypatch.delattr(torch._dynamo.callback, "callback_handler")


def test_without_the_names_answers_are_slower_or_louder(poorer):
    assert private.is_transforming() and private.in_forward_mode() and private.is_batched(torch.zeros(1))
    assert private.is_view(object()) and private.version_of(object()) is None
    private.mark_rows(torch.zeros(2))
    assert all(issubclass(kind, Exception) for kind in private.compile_errors())
    with private.below_transforms(), private.without_forward_mode(), private.without_duck_shapes():
        assert float(torch.ones(2).sum()) == 2.0
    with pytest.warns(UserWarning, match="does not tell of compilations"), private.on_compilation(print):
        pass


def test_without_the_names_derivatives_are_still_found(poorer):
    plain = torch.zeros(2)
    assert transforms.find_derivative([plain]) is None
    assert transforms.find_derivative([plain, plain.clone().requires_grad_()])[0] == 1
    assert inside(torch.func.grad, lambda x: transforms.find_derivative([plain, x])) == (
        1,
        "belongs to a transform of torch.func",
    )


def test_trees_keep_their_shape():
    tree = {"a": (1, [2, None]), "b": 3}
    assert map_leaves(lambda leaf: leaf + 1, tree) == {"a": (2, [3, None]), "b": 4}
    assert list(leaves_of(tree)) == [1, 2, 3]
    step = Step(1, (2, None))
    assert map_leaves(str, step) == Step("1", ("2", None)) and list(leaves_of(step)) == [1, 2]
