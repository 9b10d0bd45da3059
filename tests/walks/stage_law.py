"""What must hold once ``stage.patch`` is applied: COOLDOWN stands between SHADOWING and PROBATIONARY, behind gate G4B.

To be run against a patched copy of the package: ``python -m pytest stage_law.py``.
"""

import os

os.environ.setdefault("ESPER_NATIVE", "0")  # nothing is built for the copy

import pytest
import torch

import esper
from esper.kasmina import lifecycle
from esper.leyline.actions import Action, Op
from esper.leyline.codes import Check, Gate, Refusal, failed_checks
from esper.leyline.stages import ACTIVE, HELD, ISOLATED, LIVE, MERGED, Cause, Stage, sources
from esper.leyline.state import Slots
from esper.nissa import page
from esper.nissa.seeds import COURSE
from esper.nissa.swimlanes import SHOWN
from esper.runtime.tasks import named
from esper.simic.reward_shaping import POTENTIAL
from esper.utils import rng

torch.set_num_threads(1)
NEW = Stage["COOLDOWN"]
CERTAIN = {"contribution": 2.0, "contribution_error": 1.0}
UNCERTAIN = {"contribution": 2.0, "contribution_error": 2.5}
LENIENT = {"min_training_epochs": 1, "min_improvement": -100.0, "min_gradient_ratio": 0.0, "blend_epochs": 2}
LENIENT |= {"min_blending_epochs": 1, "min_contribution": -100.0, "snapshot_epochs": 1}


def engine(num_envs: int) -> esper.Engine:
    task = named("synthetic")
    data = task.data._replace(validation=task.data.validation.take(slice(32)))
    small = {"steps_per_epoch": 1, "batch_size": 8}
    return esper.make(task._replace(data=data), num_envs, backend="eager", **(LENIENT | small))


def one(stage: Stage, **fields: float) -> Slots:
    """One environment whose first slot holds a seed in a stage."""
    slots = lifecycle.empty_slots(1, 3, torch.float32, torch.device("cpu"))
    for name, value in {
        "stage": int(stage),
        "blueprint": 0,
        "blend": 0,
        "alpha": 1.0,
        "evaluations": 1,
        **fields,
    }.items():
        slots[name][0, 0] = value
    return slots


def test_everything_that_derives_knows_the_stage():
    for stages in (LIVE, ACTIVE, MERGED, HELD, COURSE, SHOWN, tuple(POTENTIAL)):
        place = stages.index(NEW)
        assert (stages[place - 1], stages[place + 1]) == (Stage.SHADOWING, Stage.PROBATIONARY)
    assert NEW not in ISOLATED
    assert list(POTENTIAL.values()) == sorted(POTENTIAL.values())
    assert all(NEW in sources(cause) for cause in (Cause.ADVANCE, Cause.CULL, Cause.CHANGE_BLUEPRINT, Cause.GOVERNOR))
    assert ".s-cooldown {" in page.page("x") and "--cooldown:" in page.page("x")
    assert any(column.endswith("stage=COOLDOWN") for column in engine(1).columns)
    assert Gate["G4B"] in Gate and failed_checks(int(Check["UNCERTAIN"])) == [
        "the contribution is smaller than its standard error"
    ]


@pytest.mark.parametrize(
    ("source", "fields", "target", "failed"),
    [
        (Stage.SHADOWING, CERTAIN, NEW, 0),
        (NEW, CERTAIN, Stage.PROBATIONARY, 0),
        (NEW, UNCERTAIN, NEW, 1024),
    ],
)
def test_decision_and_clock_take_the_new_edges_through_the_new_gate(source, fields, target, failed):
    built, accuracy = engine(1), torch.zeros(1)
    action = torch.tensor([built.codec.encode(Action(Op.ADVANCE, 0))])
    fixed = built.structure, built.hypers
    slots, result = lifecycle.apply_action(*fixed, one(source, **fields), action, accuracy)
    assert slots.stage[0, 0] == target
    assert result.failed.item() == failed and (result.refusal.item() == Refusal.GATE_FAILED) == bool(failed)
    assert lifecycle.tick(built.config, built.hypers, one(source, **fields), accuracy)[0].stage[0, 0] == target


def test_a_seed_can_be_removed_and_changed_there():
    built = engine(1)
    refusal, _ = lifecycle.refusals(built.structure, built.hypers, one(NEW, **UNCERTAIN))
    told = {action.op: refusal[0, i].item() for i, action in enumerate(built.codec.actions) if action.slot == 0}
    assert told[Op.CULL] == told[Op.CHANGE_BLUEPRINT] == Refusal.NONE
    assert told[Op.FOSSILIZE] == Refusal.WRONG_STAGE and told[Op.GERMINATE] == Refusal.OCCUPIED


def test_whole_steps_pass_through_it():
    built, met = engine(4), set()
    state = built.init(1)
    for step in range(14):
        mask = built.mask(state) & ~torch.isin(built.codec.op, torch.tensor([int(Op.CULL), int(Op.CHANGE_BLUEPRINT)]))
        keys = rng.fold_in(rng.key(step), torch.arange(4))
        state, event = built.step(state, rng.categorical(keys, torch.where(mask, 0.0, -torch.inf)))
        assert not event.result.refusal.any()
        assert torch.isfinite(built.observe(state)).all()
        met |= set(event.life.before.flatten().tolist())
        waiting = event.life.before == int(NEW)
        assert event.evaluation.measured[waiting].all()
    assert {*LIVE} <= met
