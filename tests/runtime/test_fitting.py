"""How many environments fit: by hand, by what a step really holds, and in runs that choose their own number."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from runtime_forks import words

import esper.__main__
from esper.runtime import fitting
from esper.runtime.fitting import EnvironmentMemory, fits
from esper.runtime.memory_plan import MIB
from esper.runtime.step_memory import Alive, StepMemory
from esper.utils.memory_room import Room

CPU = torch.device("cpu")


def test_what_is_alive_by_hand():
    x = torch.zeros(1000)
    with Alive([x]) as alive:
        x.view(10, 100)  # no memory of its own
        y = x + 1
        z = y * 2
        assert alive.most == 8000
        del y
        z = (z + 1) + 1
        assert alive.most == 12000, "two and the result, while the first of them is in between"
        del z
        x.new_empty(1500)
    assert alive.most == 12000


def test_what_fits_by_hand():
    need = EnvironmentMemory(2 * MIB, StepMemory(3 * MIB, 1 * MIB), 2 * MIB)
    assert need.each == 5 * MIB and need._replace(kept=2.0).each == 8 * MIB
    assert fits(need, Room(1000 * MIB, 600 * MIB, "x"), CPU) == (80, False)  # 600 - 200 that stay free
    assert fits(need, Room(1000 * MIB, 209 * MIB, "x"), CPU) == (0, False)
    assert fits(need, Room(10**6 * MIB, 10**6 * MIB, "x"), CPU) == (1024, True)
    assert fits(need, Room(10**6 * MIB, 10**6 * MIB, "x"), torch.device("cuda")) == (4096, True)


MEASURE = """
import json, sys, torch, esper
from esper.leyline.stages import Stage
from esper.runtime.step_memory import seeded, step_memory
from esper.runtime.tasks import named
from esper.utils import resident

torch.set_num_threads(1)
found = {}
for task, kinds, envs in json.loads(sys.argv[1]):
    whole, cpu = named(task), torch.device("cpu")
    few = whole._replace(blueprints=tuple(whole.blueprints[kind] for kind in kinds))
    engine = esper.make(few, envs, backend="eager", steps_per_epoch=1)
    state, wait = seeded(engine, envs, 0, Stage.BLENDING), torch.zeros(envs, dtype=torch.int64)
    predicted = step_memory(engine)
    resident.restart_peak(cpu)
    before = resident.resident(cpu)
    engine.step(state, wait)
    found[task] = [*predicted, (resident.peak(cpu) - before) / envs]
print(json.dumps(found))
"""

LARGEST = [("digits", (2, 5), 16), ("chars", (1, 3), 16)]
"""The kinds of seed that take most, of a task: behind a block, and beside the host; and environments."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its allocator can be told to give back what is freed")
def test_a_prediction_is_what_a_process_holds():
    """A whole step's peak by the kernel's account, in a process whose allocator keeps nothing: within a tenth of what
    is predicted from tensors that are alive in a minibatch and in a validation of two and four environments.
    """
    around = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "ESPER_DEBUG": "0"}
    words = [sys.executable, "-c", MEASURE, json.dumps(LARGEST)]
    said = subprocess.run(words, check=True, capture_output=True, text=True, env=around).stdout
    for backward, forward, measured in json.loads(said).values():
        assert forward > backward > 0
        assert measured == pytest.approx(forward, rel=0.1)


def auto(folder, *more):
    """A command that begins a tiny run of as many environments as fit, or goes on with one."""
    command = words(folder, 2)
    command[command.index("--num-envs") + 1] = "auto"
    return [*command, *more]


def test_a_run_chooses_once(tiny_task, tmp_path, monkeypatch, capsys):
    """What it says is what fits by its own figures; going on, it has its number whatever is left by then."""
    monkeypatch.setattr(fitting, "room", lambda device: Room(1000 * MIB, 201 * MIB, "this control group"))
    assert esper.__main__.main(auto(tmp_path / "run")) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("--num-envs auto"))
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["num_envs"]
    need = fitting.environment_memory(fitting.TrainSettings(**dict(settings_of(tmp_path / "run"), num_envs=2)))
    assert kept == MIB // need.each > 2
    assert said.startswith(f"--num-envs auto: {kept}: an environment needs {need.each / MIB:.2f} MiB")
    assert said.endswith("and 201 of the 1,000 MiB of this control group are left, 200 to stay free")
    assert json.loads((tmp_path / "run" / "resolved.json").read_text())["tiny"]["config"]["num_envs"] == kept
    monkeypatch.setattr(fitting, "room", lambda device: Room(1000 * MIB, 900 * MIB, "this control group"))
    assert esper.__main__.main([*auto(tmp_path / "run"), "--rounds", "3"]) == 0
    assert f"--num-envs auto: {kept}, as the run has them" in capsys.readouterr().out
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3 and json.loads((tmp_path / "run" / "config.json").read_text())["num_envs"] == kept


def settings_of(folder):
    """Settings of a run, but for those of one command."""
    found = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in found.items() if name not in ("out", "resume")}


REFUSED = {
    "no room": ((), Room(1000 * MIB, 200 * MIB, "this machine"), "--num-envs auto: an environment needs"),
    "no telling": ((), None, "--num-envs auto: nothing here says how much memory is left; expected a number"),
    "values": (
        ("--engine", "host_lr=0.1+0.2+0.3"),
        Room(MIB, MIB, "x"),
        "--num-envs auto: --engine host_lr has 3 values, one for each environment; expected --num-envs 3",
    ),
    "records": (
        ("--algorithm", "bc", "--dataset", "nowhere"),
        Room(MIB, MIB, "x"),
        "--num-envs auto: --algorithm bc plays no round; expected a number",
    ),
}


@pytest.mark.parametrize(("more", "left", "expected"), REFUSED.values(), ids=REFUSED)
def test_where_nothing_can_be_chosen_a_run_ends_at_the_door(
    tiny_task, tmp_path, monkeypatch, capsys, more, left, expected
):
    monkeypatch.setattr(fitting, "room", lambda device: left)
    assert esper.__main__.main(auto(tmp_path / "run", *more)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"esper train: {expected}")
    assert not (tmp_path / "run").exists()
