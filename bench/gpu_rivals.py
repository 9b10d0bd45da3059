"""Rows of ``bench.gpu`` that do the same work otherwise: a loop over networks, the cores, an earlier revision."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench import esper_step, loop, loop_captured
from bench.contender import BEST
from bench.gate import compare
from bench.gpu_setup import Empty, Figures, Row, Setup, median_ms, repeats
from bench.gpu_steps import trajectory, workload_of
from bench.served import ROOT

LOOPED = 32
"""Environments that the loop takes one after the other; its time is proportional to their number."""

COMPARED = 2
"""Epochs after which the loop is compared with Esper; one where sizes are small."""

STEP = Path(__file__).with_name("gpu_step.py")
"""The process that steps."""


def loop_row(shape: str, envs: int, seconds: float) -> Row:
    """The loop over ``torch.nn`` modules, eager and captured, timed on ``LOOPED`` environments and scaled."""

    def run(setup: Setup) -> Figures:
        count = setup.size(LOOPED, 4)
        workload = workload_of(shape, count, setup)
        options = BEST.get(("loop", shape), {}) | {"device": str(setup.device)}
        ways = {"eager": loop.prepare} | ({"captured": loop_captured.prepare} if setup.device.type == "cuda" else {})
        epochs, found = setup.size(COMPARED, 1), Figures(envs=envs, looped=count)
        truth = trajectory(esper_step.prepare(workload, "eager"), epochs)
        for name, prepare in ways.items():
            contender = prepare(workload, **options)
            verdict = compare("float32", trajectory(contender, epochs), truth)
            if not verdict.green:
                found[f"{name}_wrong"] = verdict._asdict()
                continue
            contender.reset()
            taken = repeats(contender.step, setup)
            found |= {f"{name}_ms": median_ms(taken) * envs / count, f"{name}_repeats": len(taken)}
        return found

    return Row(
        f"loop-{shape}", f"a loop of torch.nn, eager and captured, scaled to {envs:,} environments", run, seconds
    )


def stepped(shape: str, envs: int, setup: Setup, words: list[str], root: Path = ROOT) -> Figures:
    """Steps in a process of their own, of the checkout ``root``.

    Raises:
      Empty: the process failed.
    """
    if setup.small:
        words = [*words, "--plain", "--seconds=0", *(f"--set={name}" for name in ("steps_per_epoch=3", "batch_size=8"))]
    command = [sys.executable, "-P", str(STEP), shape, str(envs), *words]
    places = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": places}, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Empty(f"{' '.join(command[2:])}: exit status {done.returncode}: {last[0]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"envs": envs, "half_active_ms": median_ms(sorted(found.pop("seconds"))), **found}


def cores_row(shape: str, envs: int, few: int, seconds: float) -> Row:
    """The same step on some processors of this machine, half of the slots active."""

    def run(setup: Setup) -> Figures:
        cores = sorted(os.sched_getaffinity(0))[: setup.cores]
        words = ["--cores", ",".join(map(str, cores))]
        return {"cores": len(cores), **stepped(shape, setup.size(envs, few), setup, words)}

    return Row(f"cores-{shape}-{envs}", f"steps of {envs:,} environments on the cores", run, seconds)


def baseline_row(shape: str, envs: int, few: int, seconds: float) -> Row:
    """The same step of an earlier revision on the same device, half of the slots active."""

    def run(setup: Setup) -> Figures:
        if setup.baseline is None:
            raise Empty("no --baseline: a checkout of the revision to measure beside this one")
        return stepped(shape, setup.size(envs, few), setup, ["--device", str(setup.device)], setup.baseline)

    return Row(f"baseline-{shape}-{envs}", f"steps of {envs:,} environments by an earlier revision", run, seconds)
