"""The C++ convolution against torch's own, network by network in float64; what it may depend on; and its fallback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from esper.kernels import convolution, direct, native
from esper.utils import rng

pytestmark = pytest.mark.skipif(direct.library() is None, reason="no C++ compiler")

Case = tuple[Tensor, Tensor, Tensor]  # input, weight, gradient of the output

shapes = st.tuples(
    st.integers(1, 4),  # networks
    st.integers(1, 70),  # samples: one task and several
    st.sampled_from([(1, 1), (3, 5), (4, 4), (5, 2), (8, 9)]),  # channels in and out
    st.booleans(),  # depthwise
    st.integers(1, 13),  # height
    st.integers(1, 35),  # width
    st.sampled_from([1, 3, 5]),
)


def draw(shape: tuple[int, int, tuple[int, int], bool, int, int, int], seed: int = 0) -> Case:
    n, batch, (channels, outputs), depthwise, height, width, k = shape
    outputs, per_group = (channels, 1) if depthwise else (outputs, channels)
    key = rng.key(seed)
    x = rng.normal(rng.fold_in(key, 0), (n, batch, channels, height, width))
    weight = rng.normal(rng.fold_in(key, 1), (n, outputs, per_group, k, k))
    return x, weight, rng.normal(rng.fold_in(key, 2), (n, batch, outputs, height, width))


def exact(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Output and both gradients by torch, one network after the other, in float64."""
    rows = []
    for x, weight, grad in zip(*(part.double() for part in case), strict=True):
        x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
        rows.append((out.detach(), *torch.autograd.grad(out, (x, weight), grad)))
    out, grad_x, grad_weight = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return out, grad_x, grad_weight


def own(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = (part.clone().requires_grad_() for part in case[:2])
    assert convolution.is_direct(x, weight)
    out = convolution.conv2d(x, weight)
    grad_x, grad_weight = torch.autograd.grad(out, (x, weight), case[2])
    return out.detach(), grad_x, grad_weight


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_equals_torch(shape: tuple[int, int, tuple[int, int], bool, int, int, int]) -> None:
    case = draw(shape)
    for found, wanted in zip(own(case), exact(case), strict=True):
        # rounding of a float32 sum of `terms` products of standard normal numbers
        terms = max(case[1][0, 0].numel(), case[2][0, :, 0].numel())
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-6 * terms**0.5)


@pytest.mark.parametrize("order", ["samples first", "expanded", "channels last"])
def test_any_layout_of_the_input_and_the_gradient(order: str) -> None:
    x, weight, grad = draw((3, 30, (4, 6), False, 8, 8, 3))
    if order == "expanded":
        x = x[:1].expand_as(x)
        grad = grad[:, :1].expand_as(grad)
    elif order == "samples first":
        x, grad = (part.transpose(0, 1).contiguous().transpose(0, 1) for part in (x, grad))
    else:
        x, grad = (part.movedim(2, 4).contiguous().movedim(4, 2) for part in (x, grad))
    plain = tuple(part.contiguous() for part in (x, weight, grad))
    for found, wanted in zip(own((x, weight, grad)), own(plain), strict=True):
        assert torch.equal(found, wanted)


def test_a_network_depends_on_nothing_else() -> None:
    """Not on other networks, however many, nor on the number of threads: to the bit."""
    case = draw((5, 64, (4, 8), False, 8, 8, 3))
    together = own(case)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            alone = own(tuple(part[2:3] for part in case))  # type: ignore[arg-type]
            for part, whole in zip(alone, together, strict=True):
                assert torch.equal(part[0], whole[2])
    finally:
        torch.set_num_threads(threads)


def test_not_a_number_stays_in_its_network() -> None:
    case = draw((3, 9, (4, 4), False, 6, 6, 3))
    clean = own(case)
    case[0][1, 4, 2, 3, 3] = torch.nan
    case[1][1, 0, 0, 0, 0] = torch.inf
    for found, wanted in zip(own(case), clean, strict=True):
        assert torch.equal(found[[0, 2]], wanted[[0, 2]])
    out = own(case)[0]
    assert out[1, 4, :, 2:5, 2:5].isnan().all()


def test_gradients_of_gradients_are_refused_not_wrong() -> None:
    x, weight, _ = draw((1, 2, (2, 2), False, 4, 4, 3))
    x.requires_grad_()
    out = convolution.conv2d(x, weight.requires_grad_())
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("dtype", "channels", "taken"),
    [(torch.float32, 16, True), (torch.float32, 17, False), (torch.float64, 4, False), (torch.bfloat16, 4, False)],
)
def test_what_takes_the_direct_form(dtype: torch.dtype, channels: int, taken: bool) -> None:
    x = torch.zeros(1, 1, channels, 4, 4, dtype=dtype)
    assert convolution.is_direct(x, torch.zeros(1, channels, channels, 3, 3, dtype=dtype)) is taken


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for libraries with none in it, and nothing loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = (native.load, direct.library)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_switched_off(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_NATIVE", "0")
    assert not convolution.is_direct(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 4, 4, 3, 3))
    assert list(unbuilt.iterdir()) == []


def test_a_compiler_that_fails_costs_one_line(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = unbuilt / "broken-c++"
    broken.write_text("#!/bin/sh\necho no luck >&2\n[ $1 = --version ]\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    x, weight, _ = draw((2, 3, (4, 4), False, 5, 5, 3))
    assert not convolution.is_direct(x, weight)
    expected = torch.stack([F.conv2d(*row, padding=1) for row in zip(x, weight, strict=True)])
    torch.testing.assert_close(convolution.conv2d(x, weight), expected)
    (record,) = caplog.records
    assert "no luck" in record.getMessage() and "\n" not in record.getMessage()


def test_built_once_and_again_for_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = native.find_compiler()
    assert compiler is not None
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 41; }\n')
    first = native._built(source, compiler)
    written = first.stat().st_mtime_ns
    assert native._built(source, compiler) == first and first.stat().st_mtime_ns == written
    source.write_text('extern "C" int answer() { return 42; }\n')
    assert native._built(source, compiler) != first
    assert sorted(path.suffix for path in native.cache_folder().iterdir()) == [".so", ".so"]
