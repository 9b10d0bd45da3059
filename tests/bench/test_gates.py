"""Every case's gate is green on what Esper computes, and red on what is broken; a red gate prints no time."""

import io
import json

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

E = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(small_task):
    return Bench(small_task, CPU, Precision.FLOAT32, compile=False, quick=True)


@pytest.fixture(scope="module")
def table(small_task):
    return {name: case for name, case in cases_of(small_task).items() if not name.endswith("-start")}


def test_every_gate_is_green_and_every_case_is_measured(bench, table):
    """All but those of a start and most blueprints: timings as asked for, and the work of what has a closed form."""
    others = {
        f"{kind}-{b.name}" for kind in ("env-step", "slot", "plain") for b in bench.task.blueprints if b.name != "norm"
    }
    cases = [case._replace(counted=min(case.counted, 2)) for name, case in table.items() if name not in others]
    results, rates = run_cases(bench, cases, (E,), repeat=1, fresh=False)
    assert [result.wrong for result in results] == [None] * len(cases)
    assert all(len(result.seconds) == 1 and min(result.seconds) > 0 for result in results)
    assert len(rates) == 2, "before and after; with more turns, in between too"
    assert all(result.work.flops > 0 for result in results if result.case.startswith(("env-step", "slot", "plain")))
    assert all(result.recompiles == result.graph_breaks == 0 for result in results)
    waits = {result.case: result.waits for result in results}
    assert waits["host-step"] == waits["counterfactual"] == waits["reset"] == 0
    assert waits["dispatch"] == waits["env-step-dormant"] == 1


def spoil(trial, change):
    """The trial with something wrong in what it returns."""
    return trial._replace(run=lambda: change(trial.run()))


def later(trial):
    """The same trial one epoch further: another order of samples, another learning rate."""
    return trial._replace(state=trial.state.replace(epoch=trial.state.epoch + 1, rounds=trial.state.rounds + 1))


def with_hypers(trial, **values):
    """The gate is told of other numbers than the trial runs with."""
    changed = {name: torch.tensor(value) for name, value in values.items()}
    return trial._replace(
        engine=trial.engine.__class__(trial.engine.network, trial.engine.hypers.replace(**changed), trial.engine.data)
    )


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


def with_units(trial, factor, *units):
    """The engine's arithmetic is off by a factor somewhere."""
    network = trial.engine.network

    def off(unit):
        return unit and (lambda params, *rest: unit(params * factor, *rest))

    rows = {"seeds": lambda: tuple(tuple(map(off, row)) for row in network.units.seeds)}
    rows |= {
        "infer": lambda: tuple(map(off, network.units.infer)),
        "gates": lambda: tuple(map(off, network.units.gates)),
    }
    broken = network.units._replace(**{name: rows[name]() for name in units})
    engine = trial.engine.__class__(network._replace(units=broken), trial.engine.hypers, trial.engine.data)
    return trial._replace(engine=engine)


def illegal(result):
    """A batch in which every decision was illegal."""
    batch = result.clone()
    batch["action_mask"] = torch.zeros_like(batch["action_mask"])
    return batch


def truncated_early(result):
    batch = result.clone()
    batch["next", "truncated"] = torch.ones_like(batch["next", "truncated"])
    return batch


def without_a_row(result):
    plan, after = result
    first = plan.slots[0]._replace(groups=plan.slots[0].groups[1:])
    return plan._replace(slots=(first, *plan.slots[1:])), after


def another_kind(result):
    plan, after = result
    first, *others = plan.slots[0].groups
    wrong = plan.slots[0]._replace(groups=(first._replace(blueprint=first.blueprint + 1), *others))
    return plan._replace(slots=(wrong, *plan.slots[1:])), after


def another_row(result):
    plan, after = result
    first = plan.slots[0]._replace(envs=plan.slots[0].envs.flip(0))
    return plan._replace(slots=(first, *plan.slots[1:])), after


def one_bit(result):
    plan, after = result
    params = after.seeds.params.clone()
    params[0, 0] = torch.nextafter(params[0, 0], torch.tensor(9.0))
    return plan, after.replace(seeds=after.seeds.replace(params=params))


FAULTS = {
    "another learning rate": ("host-step", lambda t: with_hypers(t, host_lr=0.15)),
    "another momentum": ("host-step", lambda t: with_hypers(t, momentum=0.0)),
    "another clip": ("host-step", lambda t: with_hypers(t, host_clip=0.05)),
    "other samples": ("host-step", later),
    "other parameters": ("host-step", lambda t: shifted(t, "host", 0.01)),
    "other seeds": ("slot-conv_light", lambda t: shifted(t, "seeds", 0.02)),
    "another seed rate": ("slot-conv_heavy", lambda t: with_hypers(t, seed_lr=1.0)),
    "seeds that should not act": ("slot-conv_light", lambda t: moved(t, Stage.DORMANT)),
    "other modules": ("plain-conv_light", lambda t: shifted(t, "host", 0.05)),
    "a validation loss": ("env-step-dormant", lambda t: rescored(t, loss=0.01)),
    "an accuracy": ("env-step-dormant", lambda t: rescored(t, accuracy=20.0)),
    "a contribution": ("env-step-mixed-100", lambda t: rescored(t, effect=40.0)),
    "a contribution that is not a number": ("env-step-100", lambda t: rescored(t, effect=torch.nan)),
    "seeds of the lanes": ("counterfactual", lambda t: with_units(t, 1.01, "seeds")),
    "gates of the lanes": ("counterfactual", lambda t: with_units(t, 0.5, "gates")),
    "hosts of the lanes": ("env-step-dormant", lambda t: with_units(t, 1.01, "infer")),
    "lanes": ("counterfactual", lambda t: spoil(t, lambda e: e._replace(effect=e.effect.flip(1) + 40))),
    "own scores": ("validation", lambda t: spoil(t, lambda s: s._replace(losses=s.losses * 1.01))),
    "hits": ("validation", lambda t: spoil(t, lambda s: s._replace(correct=1 - s.correct))),
    "a row that is missing": ("dispatch", lambda t: spoil(t, without_a_row)),
    "another blueprint": ("dispatch", lambda t: spoil(t, another_kind)),
    "another environment's row": ("dispatch", lambda t: spoil(t, another_row)),
    "a bit of the arena": ("dispatch", lambda t: spoil(t, one_bit)),
    "another start": ("reset", lambda t: t._replace(extra=(t.extra[0], t.extra[1] + 1))),
    "rows that were to stay": ("reset", lambda t: shifted(t, "host", 0.01)),
    "other rows": ("reset", lambda t: t._replace(extra=(~t.extra[0], t.extra[1]))),
    "a refusal": ("random-walk", lambda t: spoil(t, lambda e: e._replace(deed=e.deed._replace(refusal=e.deed.op + 1)))),
    "a loss that is not a number": (
        "random-walk",
        lambda t: spoil(t, lambda e: e._replace(epoch=e.epoch._replace(loss=e.epoch.loss * torch.nan))),
    ),
    "illegal actions": ("rollout", lambda t: spoil(t, illegal)),
    "ends of episodes": ("rollout", lambda t: spoil(t, truncated_early)),
    "a policy that did not learn": ("ppo-update", lambda t: spoil(t, lambda r: (t.extra[0].restore(), r)[1])),
    "an update cut short": ("ppo-update", lambda t: spoil(t, lambda r: r | {"epochs": 1})),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_turns_the_gate_red(bench, table, fault):
    name, break_it = FAULTS[fault]
    case = table[name]
    trial = case.prepare(bench, E)
    line = case.gate(break_it(trial))
    trial.close()
    assert line is not None and "\n" not in line and len(line) > 10


def test_the_losses_of_the_second_opinion_need_no_engine(bench, table):
    """It is given a state and a dataset, and must not look at what the engine computed: it never runs it."""
    trial = table["slot-conv_light"].prepare(bench, E)
    silent = trial.engine.network._replace(units=None)
    engine = trial.engine.__class__(silent, trial.engine.hypers, trial.engine.data)
    assert plain.epoch_loss(engine, trial.state, 1) == plain.epoch_loss(trial.engine, trial.state, 1)


def test_a_red_gate_prints_no_time_and_the_others_go_on(bench, table, tmp_path):
    """A scratch case whose step loses track of half its environments."""
    sound = table["env-step-dormant"]

    def broken(bench, envs):
        return rescored(sound.prepare(bench, envs), loss=torch.arange(envs) * 0.5)

    cases = {"broken-step": Case("broken-step", "step", broken, sound.gate, sound.work), "reset": table["reset"]}
    asked = Asked("run", envs=(E,), task="synthetic", quick=True, repeat=2, compile=False, probe=False)
    asked = Asked(**(vars(asked) | {"json": tmp_path / "out.json"}))
    out, notes = io.StringIO(), io.StringIO()
    assert run(asked, out, notes, cases) == RED
    lines = [line for line in out.getvalue().splitlines() if line.startswith("broken-step")]
    assert len(lines) == 1 and "WRONG: validation loss of environment 2 is" in lines[0]
    rows = {row["case"]: row for row in json.loads((tmp_path / "out.json").read_text())["results"]}
    assert rows["broken-step"]["seconds"] == [] and rows["broken-step"]["summary"] == {}
    assert len(rows["reset"]["seconds"]) == 2 and rows["reset"]["summary"]["median"] > 0
