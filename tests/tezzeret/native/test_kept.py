"""The cache of libraries: whatever is damaged or not one's own is built anew, and nothing of it reaches the process."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from esper.tezzeret import toolchain
from esper.tezzeret.compiler import Command, find_compiler
from esper.tezzeret.kept import kept, open_library
from esper.utils.starting import runs_networks


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Path, bytes]]:
    """Builds the library of one source, or takes it from the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler: Command | None = find_compiler()
    assert compiler is not None
    (tmp_path / "answer.cpp").write_text('extern "C" int answer() { return 41; }\n')
    return lambda: toolchain.built(tmp_path, compiler)


def cut(path: Path, seal: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def altered(path: Path, seal: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def unsealed(path: Path, seal: Path) -> None:
    seal.unlink()


def sealed_wrongly(path: Path, seal: Path) -> None:
    seal.write_text("0" * 64 + "\n")


def open_to_others(path: Path, seal: Path) -> None:
    path.chmod(0o666)


def of_somebody_else(path: Path, seal: Path) -> None:
    os.chown(path, 12345, -1)


def a_link(path: Path, seal: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to(path.with_name("aside"))


DAMAGES = (cut, altered, unsealed, sealed_wrongly, open_to_others, of_somebody_else, a_link)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_not_one_s_own_is_built_anew(
    damage: Callable[[Path, Path], None], answer: Callable[[], tuple[Path, bytes]]
) -> None:
    if damage is of_somebody_else and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path, data = answer()
    assert kept(path) == data and open_library(data, path.parent).answer() == 41
    before = path.lstat()
    assert answer() == (path, data) and path.lstat().st_mtime_ns == before.st_mtime_ns, "what is sound is taken"
    damage(path, path.with_name(path.name + ".sha256"))
    assert kept(path) is None
    assert answer()[0] == path and kept(path) == answer()[1]
    facts = path.lstat()
    assert facts.st_uid == os.geteuid() and not path.is_symlink() and facts.st_mode & 0o022 == 0


def test_a_file_that_is_cut_off_while_its_library_runs_is_nobody_s_concern(
    answer: Callable[[], tuple[Path, bytes]],
) -> None:
    path, data = answer()
    library = open_library(data, path.parent)
    os.truncate(path, 0)
    assert isinstance(library, ctypes.CDLL) and library.answer() == 41
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, path.name + ".sha256"]


def test_what_was_begun_is_waited_for(
    answer: Callable[[], tuple[Path, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler runs once, whoever asks while it does, and in the background while others go on."""
    plain, built, started = toolchain.run_compiler, [], threading.Event()

    def slowly(command: Sequence[str], timeout: float = 60.0) -> str:
        if "-c" in command:
            built.append(threading.current_thread() is threading.main_thread())
            started.set()
            time.sleep(0.2)
        return plain(command, timeout)

    monkeypatch.setattr(toolchain, "run_compiler", slowly)
    monkeypatch.setattr(toolchain, "sources", lambda: tmp_path)
    toolchain.begin()
    assert started.wait(60)
    found = toolchain.load.__wrapped__()
    assert found is not None and found.answer() == 41
    assert built == [False]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "train", "--task", "digits"], True),
        (["/usr/bin/esper", "evaluate"], True),
        (["-m", "export", "--run", "runs/digits"], True),
        (["-m", "train", "--help"], False),
        (["-m", "tasks"], False),
        (["-m"], False),
        (["-c", "train"], False),
        (["/usr/bin/pytest", "train"], False),
    ],
)
def test_a_library_is_begun_where_networks_will_run(
    words: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    assert runs_networks() is expected
