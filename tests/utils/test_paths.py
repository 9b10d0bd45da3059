"""Paths as people write them, and folders that can be written to."""

import os
import stat
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.utils.paths import cache_folder, folder_name, user_path


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a/b") == tmp_path / "a" / "b" and user_path("~") == tmp_path
    assert str(user_path("./~/a")) == "~/a" and str(user_path("a~b")) == "a~b"
    assert str(user_path("~nobody-of-this-name/a")) == "~nobody-of-this-name/a"


FOLDERS = {
    "digits": "digits",
    "digits,chars": "digits,chars",
    "npz:../../../d.npz": "npz-d.npz",
    "npz:/data/a/d.npz": "npz-data-a-d.npz",
    "text:~/a b/c.txt": "text-a-b-c.txt",
    "npz:C:\\data\\d.npz": "npz-C-data-d.npz",
    "..": "run",
    "": "run",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_tasks_folder_is_named_after_it(name):
    assert folder_name(name) == FOLDERS[name]


@given(st.text(alphabet="./\\~,:-\0 aé\n", max_size=300))
def test_a_name_is_one_folder_and_never_leads_out(text):
    name = folder_name(text)
    assert name and len(name) <= 100 and not set(name) & set('/\\:\0\n ~"')
    assert os.path.normpath(os.path.join("runs", name)) == os.path.join("runs", name) and name[0] not in ".-,"


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """Nothing but a folder for temporary files."""
    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is for a user without an entry
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path


def test_caches_lie_where_the_environment_says(bare, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare / "xdg"))
    assert cache_folder("native") == bare / "xdg" / "esper" / "native" and (bare / "xdg/esper/native").is_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("native").is_relative_to(bare / "tmp"), "the specification has relative ones ignored"


def test_a_folder_that_others_could_write_into_is_closed(bare, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare))
    (bare / "esper").mkdir()
    (bare / "esper").chmod(0o777)
    assert cache_folder("native") == bare / "esper" / "native"
    assert stat.S_IMODE((bare / "esper").stat().st_mode) == 0o755


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_passed_over(bare, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare))
    (bare / "esper").mkdir()
    os.chown(bare / "esper", 12345, -1)
    assert cache_folder("native").is_relative_to(bare / "tmp")


def test_without_a_home_they_lie_in_a_private_folder(bare):
    folder = cache_folder("native")
    assert folder.parent.parent == bare / "tmp" and folder == cache_folder("native")
    assert stat.S_IMODE(folder.parent.stat().st_mode) & (stat.S_IWGRP | stat.S_IWOTH) == 0


def test_a_place_that_cannot_be_written_to_is_passed_over(bare, monkeypatch):
    (bare / "file").write_text("")  # no folder can be made in it, whoever asks
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare / "file"))
    assert cache_folder("inductor").is_relative_to(bare / "tmp")


@pytest.mark.parametrize("how", ["open", "link"])
def test_a_folder_that_others_could_write_into_is_not_taken(how, bare):
    """Libraries are loaded from it."""
    taken = bare / "tmp" / f"esper-{os.getuid()}"
    if how == "open":
        taken.mkdir()
        taken.chmod(0o777)
    else:
        (bare / "elsewhere").mkdir()
        taken.symlink_to(bare / "elsewhere")
    assert not cache_folder("native").resolve().is_relative_to(taken.resolve())
