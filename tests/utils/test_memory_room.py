"""What memory is left: control groups as the kernel's documents have them, and this machine by another call."""

import os
from pathlib import Path

import pytest
import torch

from esper.utils.memory_room import Room, of_groups, of_linux, of_macos, room

GIB = 1 << 30


def group(folder, limit, usage, inactive, version=2):
    """The files of a control group."""
    names = {2: ("memory.max", "memory.current", "inactive_file")}
    names[1] = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names[version][:2], (limit, usage), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile 7\n{names[version][2]} {inactive}\n")


def test_the_narrowest_group_counts_and_pages_that_are_given_up_are_left(tmp_path):
    group(tmp_path / "a" / "b", "max", 1 * GIB, 0)
    group(tmp_path / "a", 4 * GIB, 3 * GIB, GIB // 2)
    found = list(of_groups("0::/a/b\n", tmp_path))
    assert found == [Room(4 * GIB, GIB + GIB // 2, "this control group")]
    group(tmp_path / "a" / "b", 2 * GIB, 1 * GIB, 0)
    assert min(of_groups("0::/a/b\n", tmp_path), key=lambda each: each.left).left == GIB


def test_groups_of_version_1_and_others_that_are_out_of_sight(tmp_path):
    group(tmp_path / "memory", 9223372036854771712, 5, 0, version=1)  # what the kernel says of no limit
    group(tmp_path / "memory" / "docker" / "x", 3 * GIB, GIB, 10, version=1)
    text = "12:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n1:name=systemd:/\n0::/\n"
    assert list(of_groups(text, tmp_path)) == [Room(3 * GIB, 2 * GIB + 10, "this control group")]
    assert list(of_groups("5:memory:/elsewhere/y\n", tmp_path)) == []
    assert list(of_groups("0::/../../outside\nnonsense\n", tmp_path)) == []


def test_a_machine_as_linux_and_macos_tell_it():
    text = "MemTotal:       16 kB\nMemFree:    1 kB\nMemAvailable:   4 kB\nHugePages_Total:       0\n"
    assert list(of_linux(text)) == [Room(16384, 4096, "this machine")]
    assert list(of_linux("MemTotal: 16 kB\n")) == []
    said = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:    3.\nPages active:   9.\n"
        'Pages inactive:  2.\n"Translation faults":  77.\n'
    )
    assert of_macos(said, 1 << 20) == Room(1 << 20, 5 * 16384, "this machine")


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux")
def test_this_machine_has_no_more_than_its_pages():
    """What others take and give back meanwhile is theirs, so of what is left only the bounds are known."""
    found = room(torch.device("cpu"))
    assert found.limit <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found.left <= found.limit and 0 < found.share <= 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux")
def test_a_limit_of_addresses_counts():
    """In a process of its own, by the kernel's own refusal of what is beyond it."""
    import resource

    child = os.fork()
    if child == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 256 * (1 << 20),) * 2)
        found, status = room(torch.device("cpu")), 1
        if found.place == "this process (ulimit -v)" and 128 << 20 < found.left <= 256 << 20:
            torch.empty(found.left - (64 << 20), dtype=torch.uint8)
            try:
                torch.empty(found.left + (64 << 20), dtype=torch.uint8)  # what is freed meanwhile is less than that
            except (MemoryError, RuntimeError):
                status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
