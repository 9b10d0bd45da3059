"""Every case's gate is green on what Esper computes, and red on what is broken; a red gate prints no time."""

import io
import json
from dataclasses import replace

import pytest
import torch

from esper.bench import plain
from esper.bench.__main__ import RED, run
from esper.bench.case import Bench, Case
from esper.bench.cases import cases_of
from esper.bench.run import run_cases
from esper.bench.settings import Asked
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE, Stage
from esper.runtime import debug


@pytest.fixture(scope="module", autouse=True)
def _as_users_run_it():
    """The debug switch looks at every argument, which counts as waiting."""
    debug.switch(False)
    yield
    debug.switch(True)


E = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["eager", "auto"])
def bench(small_task, request):
    return Bench(small_task, CPU, Precision.FLOAT32, request.param, quick=True)


@pytest.fixture(scope="module")
def table(small_task):
    apart = ("-start", "-by-side")  # processes that know tasks by name; they have tests of their own
    return {name: case for name, case in cases_of(small_task).items() if not name.endswith(apart)}


def test_every_gate_is_green_and_every_case_is_measured(bench, table):
    """All but those of a start and most blueprints: timings as asked for."""
    others = {f"env-step-{b.name}" for b in bench.task.blueprints if b.name != "norm"}
    cases = [case._replace(counted=min(case.counted, 2)) for name, case in table.items() if name not in others]
    results = run_cases(bench, cases, (E,), repeat=1, fresh=False)
    assert [result.wrong for result in results] == [None] * len(cases)
    assert all(len(result.seconds) == 1 and min(result.seconds) > 0 for result in results)
    assert not any(result.recompiles for result in results)
    waits = {result.case: result.waits for result in results}
    assert waits["host-step"] == waits["contributions"] == 0 and waits["env-step-dormant"] == 1


def spoil(trial, change):
    """The trial with something wrong in what it returns."""
    return trial._replace(run=lambda: change(trial.run()))


def later(trial):
    """The same trial one epoch further: another order of samples, another learning rate."""
    return trial._replace(state=trial.state.replace(epoch=trial.state.epoch + 1, rounds=trial.state.rounds + 1))


def with_hypers(trial, **values):
    """The gate is told of other numbers than the trial runs with."""
    changed = {name: torch.tensor(value) for name, value in values.items()}
    return trial._replace(engine=replace(trial.engine, hypers=trial.engine.hypers.replace(**changed)))


def shifted(trial, name, amount):
    """The gate is told of other parameters than the trial runs with."""
    bank = getattr(trial.state, name)
    return trial._replace(state=trial.state.replace(**{name: bank.replace(params=bank.params + amount)}))


def rescored(trial, **changes):
    """An environment step whose validation reports something else."""

    def change(result):
        after, event = result
        evaluation = event.evaluation
        values = {name: getattr(evaluation, name) + amount for name, amount in changes.items()}
        return after, event._replace(evaluation=evaluation._replace(**values))

    return spoil(trial, change)


def moved(trial, stage):
    """The gate is told that all active seeds are in another stage."""
    active = torch.isin(trial.state.slots.stage, torch.tensor([int(s) for s in ACTIVE]))
    slots = trial.state.slots.replace(stage=torch.where(active, int(stage), trial.state.slots.stage))
    return trial._replace(state=trial.state.replace(slots=slots))


def in_validation(trial, columns, factor):
    """The engine's validation reads some parameters off by a factor: all of the host's, or some of the seeds'."""
    backend, structure = trial.engine.backend, trial.engine.structure
    gate = torch.cat([torch.zeros(0), *(_gate_mask(slot) for slot in structure.slots)]).bool()

    def off(hypers, plan, learners, *rest):
        bank = learners.host if columns == "host" else learners.seeds
        mask = {"host": torch.tensor(True), "seeds": ~gate, "gates": gate}[columns]
        bank = bank._replace(params=torch.where(mask, bank.params * factor, bank.params))
        changed = learners._replace(**{"host" if columns == "host" else "seeds": bank})
        return backend.evaluate(hypers, plan, changed, *rest)

    return trial._replace(engine=replace(trial.engine, backend=backend._replace(evaluate=off)))


def _gate_mask(slot):
    return torch.arange(slot.width) >= slot.width - slot.gate.size


def illegal(result):
    """A batch in which every decision was illegal."""
    batch = result[0].clone()
    batch["action_mask"] = torch.zeros_like(batch["action_mask"])
    return batch, result[1]


def truncated_early(result):
    batch = result[0].clone()
    batch["next", "truncated"] = torch.ones_like(batch["next", "truncated"])
    return batch, result[1]


def successor_of_itself(batch):
    """Every step is followed by itself."""
    batch["next", "observation"] = batch["observation"]
    return batch


def rewards_late(batch):
    batch["next", "reward"] = batch["next", "reward"].roll(1, dims=1)
    return batch


FAULTS = {
    "another learning rate": ("host-step", lambda t: with_hypers(t, host_lr=0.15)),
    "another momentum": ("host-step", lambda t: with_hypers(t, momentum=0.0)),
    "another clip": ("host-step", lambda t: with_hypers(t, host_clip=0.05)),
    "other samples": ("host-step", later),
    "other parameters": ("host-step", lambda t: shifted(t, "host", 0.01)),
    "other seeds": ("env-step-conv_light", lambda t: shifted(t, "seeds", 0.02)),
    "another seed rate": ("env-step-conv_heavy", lambda t: with_hypers(t, seed_lr=1.0)),
    "seeds that should not act": ("env-step-conv_light", lambda t: moved(t, Stage.DORMANT)),
    "a validation loss": ("env-step-dormant", lambda t: rescored(t, loss=0.01)),
    "an accuracy": ("env-step-dormant", lambda t: rescored(t, accuracy=20.0)),
    "a contribution": ("env-step-mixed-100", lambda t: rescored(t, effect=40.0)),
    "a contribution that is not a number": ("env-step-100", lambda t: rescored(t, effect=torch.nan)),
    "seeds in validation": ("contributions", lambda t: in_validation(t, "seeds", 1.01)),
    "gates in validation": ("contributions", lambda t: in_validation(t, "gates", 0.5)),
    "hosts in validation": ("env-step-dormant", lambda t: in_validation(t, "host", 1.01)),
    "slots": ("contributions", lambda t: spoil(t, lambda e: e._replace(effect=e.effect.flip(1) + 40))),
    "own losses": ("validation", lambda t: spoil(t, lambda s: s._replace(losses=s.losses * 1.01))),
    "own scores": ("validation", lambda t: spoil(t, lambda s: s._replace(scores=1 - s.scores))),
    "a refusal": (
        "random-walk",
        lambda t: spoil(t, lambda e: e._replace(result=e.result._replace(refusal=e.result.op + 1))),
    ),
    "a loss that is not a number": (
        "random-walk",
        lambda t: spoil(t, lambda e: e._replace(epoch=e.epoch._replace(loss=e.epoch.loss * torch.nan))),
    ),
    "illegal actions": ("round", lambda t: spoil(t, illegal)),
    "ends of episodes": ("round", lambda t: spoil(t, truncated_early)),
    "a policy that did not learn": ("round", lambda t: spoil(t, lambda r: (t.extra.restore(), r)[1])),
    "other numbers than a dataset's": ("replay-sample", lambda t: spoil(t, lambda b: b.set("action", b["action"] + 1))),
    "a successor of another step": ("replay-sample", lambda t: spoil(t, successor_of_itself)),
    "a window twice": ("replay-sample", lambda t: spoil(t, lambda b: torch.cat((b, b)))),
    "rewards of other steps": ("replay-sample", lambda t: spoil(t, rewards_late)),
    "an update cut short": ("round", lambda t: spoil(t, lambda r: (r[0], r[1] | {"epochs": 1}))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_turns_the_gate_red(bench, table, fault):
    name, break_it = FAULTS[fault]
    case = table[name]
    trial = case.prepare(bench, E)
    line = case.gate(break_it(trial))
    trial.close()
    assert line is not None and "\n" not in line and len(line) > 10


def test_the_second_opinion_needs_no_backend(bench, table):
    """It is given a state and a dataset, and must not look at what the engine computed: it never runs it."""
    trial = table["env-step-conv_light"].prepare(bench, E)
    silent = replace(trial.engine, backend=None)
    assert plain.epoch_loss(silent, trial.state, 1) == plain.epoch_loss(trial.engine, trial.state, 1)
    assert plain.validate(silent, trial.state, 1).scores.shape == (4, silent.data.validation.size)


def test_a_red_gate_prints_no_time_and_the_others_go_on(bench, table, tmp_path):
    """A scratch case whose step loses track of half its environments."""
    sound = table["env-step-dormant"]

    def broken(bench, envs):
        return rescored(sound.prepare(bench, envs), loss=torch.arange(envs) * 0.5)

    cases = {
        "broken-step": Case("broken-step", "step", broken, sound.gate),
        "validation": table["validation"],
    }
    asked = Asked("run", envs=(E,), task="synthetic", quick=True, repeat=2, backend="eager", probe=False)
    asked = Asked(**(vars(asked) | {"json": tmp_path / "out.json"}))
    out, notes = io.StringIO(), io.StringIO()
    assert run(asked, out, notes, cases) == RED
    lines = [line for line in out.getvalue().splitlines() if line.startswith("broken-step")]
    assert len(lines) == 1 and "WRONG: validation loss of environment 2 is" in lines[0]
    rows = {row["case"]: row for row in json.loads((tmp_path / "out.json").read_text())["results"]}
    assert rows["broken-step"]["seconds"] == [] and rows["broken-step"]["summary"] == {}
    assert len(rows["validation"]["seconds"]) == 2 and rows["validation"]["summary"]["median"] > 0
