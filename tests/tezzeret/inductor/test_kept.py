"""Compiled units on disk: the same bits in another process, for any number of rows, and nothing that others wrote."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from esper.bench.meter import compilations
from esper.tezzeret.compiler import find_compiler
from esper.tezzeret.inductor import store
from esper.tezzeret.inductor.identity import identify
from esper.tezzeret.inductor.kept import Kept
from esper.tezzeret.inductor.plainly import Refused
from esper.tezzeret.inductor.signature import signature_of
from esper.tezzeret.inductor.workers import compile_together

KERNEL = torch.linspace(-1, 1, 30).reshape(5, 6)


def unit(row, x):
    """A product between two elementwise parts, a tensor of its own, and an argument that is given back."""
    mixed = torch.bmm(torch.tanh(x), (row[:, None, None] * KERNEL).sin())
    return mixed.softmax(2), (row, torch.where(x > 0.25, 0.0, x).sum((1, 2)))


def arguments(rows):
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, generator=generator), torch.randn(rows, 4, 5, generator=generator)


def looked_up(function=unit):
    return Kept(function, signature_of(arguments(2), True), "here")


def bits():
    """Results of what lies on disk, as text; nothing is compiled."""
    found = []
    for rows in (2, 3, 7, 64):
        value, (row, total) = looked_up()(*arguments(rows))
        found.append([part.view(torch.int32).flatten().tolist() for part in (value, row, total)])
    return repr(found)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    monkeypatch.setenv(store.CACHE, str(tmp_path))
    made = looked_up()
    assert made.call is None
    with compilations() as counted:
        compile_together((made,))
    assert counted == [1] and made.reason is None
    return made


@pytest.mark.compiled
@pytest.mark.skipif(find_compiler() is None, reason="Inductor needs a C++ compiler on a CPU")
def test_a_unit_is_the_same_bits_in_a_fresh_process_and_is_the_function(kept):
    for rows in (2, 5, 33):
        for found, wanted in zip(torch.utils._pytree.tree_leaves(kept(*arguments(rows))), _plain(rows), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_kept; print(test_kept.bits())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == bits()


def _plain(rows):
    return torch.utils._pytree.tree_leaves(unit(*arguments(rows)))


@pytest.mark.compiled
@pytest.mark.skipif(find_compiler() is None or not hasattr(os, "getuid"), reason="needs a compiler and POSIX")
def test_what_is_damaged_or_open_to_others_is_not_loaded(kept):
    place = store.path_of(kept.name)
    saved = {path: path.read_bytes() for path in place.parent.iterdir()}
    assert len(saved) == 4
    for path, content in saved.items():
        for spoil in (partial(path.write_bytes, content[:-3]), partial(path.chmod, 0o622), path.unlink):
            assert looked_up().call is not None
            spoil()
            assert looked_up().call is None
            path.write_bytes(content)
            path.chmod(0o600)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert looked_up().call is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere units are compiled one by one in this process")
def test_a_compiling_process_that_dies_is_a_reason_and_no_more(monkeypatch, tmp_path):
    monkeypatch.setenv(store.CACHE, str(tmp_path))
    made = looked_up()
    made.write = lambda: os._exit(3)
    compile_together((made,))
    assert made.call is None and "\n" not in made.reason
    with pytest.raises(Refused, match="died"):
        made(*arguments(2))


def test_equal_functions_have_one_name_and_others_have_another():
    signature = signature_of(arguments(2), True)
    scale = torch.tensor(2.0)

    def again(row, x):
        return unit(row, x)

    def scaled(row, x):
        return unit(row * scale, x)

    name = identify(unit, signature, "here").name
    assert identify(again, signature, "here").name == name
    assert identify(unit, signature, "there").name != name
    others = [identify(scaled, signature, "here").name]
    scale.fill_(3.0)
    others.append(identify(scaled, signature, "here").name)
    others.append(identify(lambda row, x: unit(row, x)[::-1], signature, "here").name)
    others.append(identify(lambda row, x: unit(row, x * 1.5), signature, "here").name)
    others.append(identify(lambda row, x: unit(row, x * row.shape[0]), signature, "here").name)
    assert len({name, *others}) == 6
