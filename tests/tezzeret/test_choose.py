"""Which backend runs a structure: what ``auto`` picks, and what is said where one cannot."""

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tezzeret_states import CPU

import esper
from esper.engine import Engine
from esper.kasmina.objectives import cross_entropy
from esper.kasmina.slot_table import take_table
from esper.leyline.config import ConfigError, Isolation, Precision
from esper.leyline.learners import learners_of
from esper.tezzeret import choose, native, toolchain
from esper.tezzeret.backend import BackendError
from esper.tezzeret.compiler import find_compiler
from esper.tezzeret.inductor import compiled
from esper.tezzeret.native.library import library
from esper.utils.torch_private import default_inductor_cache

pytestmark = pytest.mark.usefixtures("auto_as_shipped")

SHIPPED_TRIAL = compiled.trial
"""As users have it; tests are spared it."""

NATIVE = pytest.mark.skipif(library() is None, reason="no C++ compiler")


def made(backend: str, **settings: object) -> Engine:
    return esper.make("synthetic", 2, backend=backend, **settings)


@NATIVE
@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, "native"),
        ({"precision": Precision.FLOAT64}, "inductor"),
        ({"differentiable": True}, "eager"),
        ({"seed_optimizer": "adamw"}, "native"),
        ({"isolation": Isolation.OBJECTIVE}, "native"),
    ],
)
def test_auto_is_the_first_that_can(settings: dict, chosen: str) -> None:
    engine = made("auto", **settings)
    assert engine.backend.name == chosen
    assert engine.describe()[0].startswith(f"{chosen}: ") and f", {chosen})" in repr(engine)


def test_auto_has_an_answer_for_every_device_and_dtype() -> None:
    for device in ("cpu", "cuda"):
        for dtype in (torch.float32, torch.float64):
            assert choose.AUTO[device, dtype][-1] == "eager"
    assert {name for names in choose.AUTO.values() for name in names} <= set(choose.CHOICES) - {"auto"}


REFUSED = {
    "precision float64; expected float32": {"precision": Precision.FLOAT64},
    "gives no derivatives; with differentiable=True expected 'eager'": {"differentiable": True},
}


@NATIVE
@pytest.mark.parametrize("reason", REFUSED)
def test_native_says_what_it_does_not_know(reason: str) -> None:
    with pytest.raises(BackendError) as error:
        made("native", **REFUSED[reason])
    assert str(error.value) == f"backend = 'native': {reason}" if "deriv" in reason else f"backend 'native': {reason}"


@NATIVE
def test_native_knows_one_objective_and_one_device() -> None:
    structure = made("eager").structure
    smoothed = esper.runtime.tasks.synthetic()._replace(objective=cross_entropy(label_smoothing=0.1))
    with pytest.raises(BackendError, match=r"^backend 'native': objective .* expected plain cross-entropy$"):
        esper.make(smoothed, 2, backend="native")
    with pytest.raises(BackendError, match=r"^backend 'native': device cuda; expected cpu$"):
        choose.build_backend("native", structure, torch.device("cuda"))


@NATIVE
@pytest.mark.parametrize("task", ["digits", "chars", "synthetic_tokens"])
def test_presets_are_native_without_a_line(task: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="esper"):
        assert esper.make(task, 2).backend.name == "native"
    assert not caplog.records


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No library is built or found."""
    monkeypatch.setenv("ESPER_NATIVE", "0")
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(compiled, "find_compiler", lambda: None)
    yield


@pytest.mark.usefixtures("without_library")
def test_without_a_compiler_auto_is_eager_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="esper"):
        assert made("auto").backend.name == "eager"
    reasons = [record.getMessage() for record in caplog.records]
    assert len(reasons) == 2 and all("no C++ compiler" in reason and "\n" not in reason for reason in reasons)
    with pytest.raises(BackendError, match=r"^backend 'native': no built library \(no C\+\+ compiler, or ESPER_N"):
        made("native")


def test_libraries_are_not_built_where_they_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    load = functools.cache(toolchain.load.__wrapped__)
    for name, value in (("ESPER_NATIVE", "0"), ("PATH", "")):
        with monkeypatch.context() as patch:
            patch.delenv("CXX", raising=False)
            patch.setenv(name, value)
            load.cache_clear()
            assert load() is None


@pytest.mark.parametrize("backend", ["auto", "native"])
@NATIVE
def test_an_instruction_set_that_this_machine_lacks_is_an_error(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_ISA", "abacus")
    with pytest.raises(ConfigError, match=r"^ESPER_ISA = 'abacus': expected .* here$"):
        made(backend)
    assert made("eager").backend.name == "eager"


@pytest.mark.parametrize("backend", ["fast", "", "Eager", None])
def test_an_unknown_backend_is_refused_with_the_known_ones(backend: object) -> None:
    with pytest.raises(ConfigError) as error:
        made(backend)  # type: ignore[arg-type]
    assert str(error.value) == f"backend = {backend!r}: expected {', '.join(choose.CHOICES)}"


@pytest.mark.parametrize("value", [True, False, "auto"])
def test_compile_is_told_its_new_name(value: object) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'compile'; backend = 'eager' or 'inductor' is meant$"):
        esper.make("synthetic", 2, compile=value)


@NATIVE
def test_derivatives_of_native_raise_instead_of_being_wrong() -> None:
    engine = made("native", batch_size=4)
    state = engine.init(0)
    plan, learners = engine.backend.plan(take_table(state.slots), CPU), learners_of(state)

    def loss(host: torch.Tensor) -> torch.Tensor:
        moved = learners._replace(host=learners.host._replace(params=host))
        samples = (engine.data.train.inputs[:4].expand(2, 4, *engine.data.train.inputs.shape[1:]),)
        batch = esper.tezzeret.batches.Batch(*samples, engine.data.train.targets[:4].expand(2, 4))
        return engine.backend.minibatch_step(engine.hypers, plan, moved, state.slots.alpha, batch)[1].loss.sum()

    host = learners.host.params
    for derivative in (lambda: torch.func.grad(loss)(host), lambda: torch.func.jvp(loss, (host,), (host,))):
        with pytest.raises(BackendError, match='expected backend="eager"'):
            derivative()


def test_where_a_trial_of_inductor_fails_auto_is_eager_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiler that only the kernels take, a cache that cannot be written, headers that are missing."""

    def fails(function: object, compiler: str = "inductor") -> object:
        def run(*arguments: object) -> object:
            raise RuntimeError("CppCompileError: no omp.h\n\nmore\nlines")

        return run

    monkeypatch.setenv("ESPER_NATIVE", "0")
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(compiled, "compiled", fails)
    monkeypatch.setattr(compiled, "compiled_and_kept", fails)
    monkeypatch.setattr(compiled, "trial", SHIPPED_TRIAL.__wrapped__)
    with caplog.at_level(logging.INFO, logger="esper"):
        assert made("auto").backend.name == "eager"
    line = "backend 'inductor': a trial failed: CppCompileError: no omp.h"
    assert caplog.records[-1].getMessage() == f"esper: {line}"
    with pytest.raises(BackendError, match=f"^{line}$"):
        made("inductor")


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_inductors_cache_is_ours_unless_somebody_chose_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Importing tensordict writes torch's default into the environment; that is nobody's choice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for before, after in (
        (default_inductor_cache(), tmp_path / "esper" / "inductor"),
        (None, tmp_path / "esper" / "inductor"),
        (str(tmp_path / "chosen"), tmp_path / "chosen"),
    ):
        monkeypatch.delenv(compiled.CACHE, raising=False)
        if before is not None:
            monkeypatch.setenv(compiled.CACHE, before)
        compiled.require_compiler(CPU)
        assert os.environ[compiled.CACHE] == str(after)
