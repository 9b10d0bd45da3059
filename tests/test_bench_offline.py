"""The study of offline learning: its mix, and its arithmetic on numbers that are known."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def offline(bench_module):
    return bench_module("offline")


def test_the_shares_of_the_mix_add_up(offline):
    parts = offline.shares(Path("runs/ppo")).split(",")
    assert sum(float(part.rpartition(":")[2]) for part in parts) == pytest.approx(1.0, abs=1e-12)
    assert sum(part.startswith("script:") for part in parts) == len(offline.SCRIPTS)


def test_the_table_pairs_environments(offline):
    """A constant lead in every environment has no uncertainty, however much the environments differ."""
    base = (10.0 * torch.arange(8)).tolist()
    found = {"bc": {"return": base, "J": base}, "iql": {"return": [x + 1.5 for x in base], "J": base}}
    told = offline.table(found, {"wait": torch.arange(8).double(), "random": torch.arange(8).double() + 1})
    (line,) = (line for line in told.splitlines() if line.strip().startswith("iql - bc "))
    assert line.split()[3:] == ["+1.500", "±", "0.000"]
