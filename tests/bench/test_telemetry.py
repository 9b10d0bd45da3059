"""Cases of telemetry and of the platform: their gates see what they are there for."""

import io
from contextlib import ExitStack

import pytest
import torch

from esper.bench import telemetry
from esper.bench.__main__ import main
from esper.bench.case import Bench
from esper.bench.ratios import findings
from esper.bench.record import Result
from esper.leyline.config import Precision
from esper.nissa.profiles import PROFILES
from esper.runtime.tasks import TASKS

CASES = {case.name: case for case in telemetry.CASES}


def bench():
    return Bench(TASKS["synthetic"](), torch.device("cpu"), Precision.FLOAT32, "eager", quick=True)


def test_there_is_a_case_for_every_profile():
    assert {f"telemetry-{name}" for name in PROFILES} == {name for name in CASES if name.startswith("telemetry-")}


def test_cases_pass_their_gates_and_ratios_are_taken():
    out = io.StringIO()
    words = [
        "run",
        "telemetry-[oms]*",
        "hosts-alone",
        "platform-step",
        "env-step-dormant",
        "--quick",
        "--backend",
        "eager",
    ]
    assert main([*words, "--task", "synthetic", "--envs", "2", "--repeat", "1"], out, io.StringIO()) == 0
    text = out.getvalue()
    assert "WRONG" not in text and all(len(line) <= 120 for line in text.splitlines())
    assert "telemetry standard / off" in text and "platform / hosts alone" in text


def test_a_round_whose_episodes_are_others_is_wrong():
    trial = CASES["telemetry-standard"].prepare(bench(), 2)
    with ExitStack() as stack:
        stack.callback(trial.close)
        batch, row = trial.run()
        other = batch.clone()
        other["next", "reward"][0, 0] += 1e-6
        found = CASES["telemetry-standard"].gate(trial._replace(run=lambda: (other, row)))
        assert found == "next/reward differs from that of a round without telemetry; expected the same bits"
        less = {name: value for name, value in row.items() if name != "host_gradient_norm"}
        found = CASES["telemetry-standard"].gate(trial._replace(run=lambda: (batch, less)))
        assert found == "the row lacks host_gradient_norm"


def test_hosts_alone_have_no_slots_and_are_the_same_hosts():
    shared = bench()
    alone, platform = (CASES[name].prepare(shared, 2) for name in ("hosts-alone", "platform-step"))
    assert alone.engine.config.num_slots == 0 and platform.engine.config.num_slots > 0
    assert torch.equal(alone.state.host.params, platform.state.host.params)
    epoch, scores, end = alone.run()
    after = platform.run()["next"]
    assert torch.allclose(after["val_loss"].squeeze(1), scores.losses.mean(1), rtol=1e-5)
    wrong = CASES["hosts-alone"].gate(
        alone._replace(run=lambda: (epoch, scores._replace(losses=2 * scores.losses), end))
    )
    assert wrong is not None and "validation loss" in wrong


def test_quartiles_are_those_of_the_turns():
    turns = [1.0 + number / 100 for number in range(41)]
    found = findings(
        [
            Result("hosts-alone", "u", 256, seconds=[2.0] * 41),
            Result("platform-step", "u", 256, seconds=[2 * t for t in turns]),
        ]
    )
    (ratio,) = (each for each in found if each.name == "platform / hosts alone")
    assert (ratio.p10, ratio.p25, ratio.median, ratio.p75, ratio.p90) == pytest.approx((1.04, 1.1, 1.2, 1.3, 1.36))
    assert ratio.verdict == "EXCEEDED"
