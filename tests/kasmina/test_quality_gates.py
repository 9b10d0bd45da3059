"""Gates and clock at their exact thresholds, one seed at a time."""

import math

import pytest
import torch

from esper.kasmina import lifecycle
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_SMALL, NORM
from esper.kasmina.objectives import cross_entropy
from esper.kasmina.quality_gates import CANDIDATE_GATES, GATES, TIMERS
from esper.kasmina.structure import Structure, build_structure
from esper.leyline.actions import Action, Blend, Op
from esper.leyline.codes import GATE_CHECKS, Check, Gate, Refusal
from esper.leyline.config import Config, Precision
from esper.leyline.hypers import HyperParams, build_hypers
from esper.leyline.stages import ACTIVE, LIVE, TRANSITIONS, Cause, Stage, Timer
from esper.leyline.state import Slots

CPU = torch.device("cpu")
ACCURACY = torch.tensor([40.0])
WAIT = Action(Op.WAIT)
GROW = Action(Op.GERMINATE, 0, 0, int(Blend.LINEAR))


def below(number: float) -> float:
    return torch.nextafter(torch.tensor(number), torch.tensor(-math.inf)).item()


def network(**fields: object) -> Structure:
    config = Config(1, (0, 1), tuple(Blend), **({"auto_advance": False} | fields))
    return build_structure(config, cnn_host((1, 4, 4), 2, 2, 4, 0), (NORM, CONV_SMALL), cross_entropy(), CPU)


def hypers(**overrides: float) -> HyperParams:
    return build_hypers(overrides, 1, torch.float32, CPU)


def seed(stage: Stage, **fields: float) -> Slots:
    """One environment whose first slot holds a linear `norm` in a stage; its second slot is empty."""
    slots = lifecycle.empty_slots(1, 2, torch.float32, CPU)
    held = {"blueprint": 0, "blend": 0} if stage in LIVE + ACTIVE else {}
    merged = {"alpha": 1.0} if stage in (Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED) else {}
    for name, value in ({"stage": int(stage)} | held | merged | fields).items():
        slots[name][0, 0] = value
    return slots


def decide(slots: Slots, action: Action, net: Structure, numbers: HyperParams) -> tuple[Slots, int, int]:
    index = torch.tensor([net.codec.encode(action)])
    slots, result = lifecycle.apply_action(net, numbers, slots, index, ACCURACY)
    return slots, result.refusal.item(), result.failed.item()


def stage_of(slots: Slots) -> Stage:
    return Stage(slots.stage[0, 0].item())


def tick(slots: Slots, net: Structure, numbers: HyperParams) -> Slots:
    return lifecycle.tick(net.config, numbers, slots, ACCURACY)[0]


TRAINED = {"stage_age": 3, "evaluations": 1, "gradient_ratio": 0.05, "prospect": 0.5}
BLENDED = {"stage_age": 3, "alpha": 0.95}
PROVEN = {"measured": True, "contribution": 1.0, "in_snapshot": True}
OPEN = [
    (Stage.TRAINING, Op.ADVANCE, TRAINED, Stage.BLENDING),
    (Stage.TRAINING, Op.ADVANCE, TRAINED | {"prospect": -9.0, "improvement": 0.5}, Stage.BLENDING),
    (Stage.BLENDING, Op.ADVANCE, BLENDED, Stage.SHADOWING),
    (Stage.SHADOWING, Op.ADVANCE, {"evaluations": 1}, Stage.PROBATIONARY),
    (Stage.PROBATIONARY, Op.FOSSILIZE, PROVEN, Stage.FOSSILIZED),
]
SHUT = [
    (Stage.TRAINING, TRAINED | {"stage_age": 2}, Check.TOO_YOUNG),
    (Stage.TRAINING, TRAINED | {"gradient_ratio": below(0.05)}, Check.LOW_GRADIENT),
    (Stage.TRAINING, TRAINED | {"gradient_ratio": math.nan}, Check.LOW_GRADIENT),
    (Stage.TRAINING, TRAINED | {"healthy": False}, Check.UNHEALTHY),
    (Stage.TRAINING, TRAINED | {"prospect": below(0.5)}, Check.NO_IMPROVEMENT),
    (Stage.TRAINING, TRAINED | {"prospect": math.nan, "improvement": below(0.5)}, Check.NO_IMPROVEMENT),
    (Stage.TRAINING, TRAINED | {"evaluations": 0}, Check.NO_IMPROVEMENT),
    (Stage.BLENDING, BLENDED | {"stage_age": 2}, Check.TOO_YOUNG),
    (Stage.BLENDING, BLENDED | {"alpha": below(0.95)}, Check.LOW_ALPHA),
    (Stage.SHADOWING, {"evaluations": 0}, Check.NOT_MEASURED),
    (Stage.PROBATIONARY, PROVEN | {"measured": False}, Check.NOT_MEASURED),
    (Stage.PROBATIONARY, PROVEN | {"contribution": below(1.0)}, Check.LOW_CONTRIBUTION),
    (Stage.PROBATIONARY, PROVEN | {"contribution": math.nan}, Check.LOW_CONTRIBUTION),
    (Stage.PROBATIONARY, PROVEN | {"healthy": False}, Check.UNHEALTHY),
    (Stage.PROBATIONARY, PROVEN | {"in_snapshot": False}, Check.NOT_IN_SNAPSHOT),
]


def test_every_gate_and_every_timer_has_its_function() -> None:
    assert sorted([*GATES, *CANDIDATE_GATES]) == list(Gate)
    assert list(TIMERS) == list(Timer)
    automatic = {edge.gate for edge in TRANSITIONS if Cause.CLOCK in edge.causes} - {None}
    assert automatic <= set(GATES)


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_fails_by_its_own_checks_only(gate: Gate) -> None:
    for stage in Stage:
        for fields in ({}, {"healthy": False, "gradient_ratio": math.nan, "contribution": -1.0}):
            assert not (GATES[gate](hypers(), seed(stage, **fields)) & ~int(GATE_CHECKS[gate])).any()


@pytest.mark.parametrize(("stage", "op", "fields", "target"), OPEN)
def test_a_gate_opens_exactly_on_its_thresholds(stage: Stage, op: Op, fields: dict[str, float], target: Stage) -> None:
    slots, refusal, failed = decide(seed(stage, **fields), Action(op, 0), network(), hypers())
    assert (refusal, failed, stage_of(slots)) == (Refusal.NONE, 0, target)


@pytest.mark.parametrize(("stage", "fields", "check"), SHUT)
def test_a_gate_stays_shut_just_below_and_names_the_check(stage: Stage, fields: dict[str, float], check: Check) -> None:
    op = Op.FOSSILIZE if stage == Stage.PROBATIONARY else Op.ADVANCE
    slots, refusal, failed = decide(seed(stage, **fields), Action(op, 0), network(), hypers())
    assert (refusal, failed, stage_of(slots)) == (Refusal.GATE_FAILED, check, stage)
    assert stage_of(tick(seed(stage, **fields), network(), hypers())) == stage


@pytest.mark.parametrize("auto_advance", [True, False])
@pytest.mark.parametrize(("stage", "op", "fields", "target"), OPEN)
def test_only_the_clock_of_an_automatic_run_opens_gates_and_never_fossilizes(
    stage: Stage, op: Op, fields: dict[str, float], target: Stage, auto_advance: bool
) -> None:
    after = stage_of(tick(seed(stage, **fields), network(auto_advance=auto_advance), hypers()))
    assert after == (target if auto_advance and op == Op.ADVANCE else stage)


def test_gates_read_the_numbers_of_their_own_environment() -> None:
    config = Config(3, (0, 1, 2), auto_advance=False)
    net = build_structure(config, cnn_host((1, 4, 4), 2, 3, 4, 0), (NORM,), cross_entropy(), CPU)
    numbers = build_hypers({"shadowing_epochs": torch.tensor([1.0, 2.0, 3.0])}, 3, torch.float32, CPU)
    slots = lifecycle.empty_slots(3, 3, torch.float32, CPU)
    slots["stage"][:] = int(Stage.SHADOWING)
    slots["evaluations"][:] = 2
    slots["blueprint"][:] = 0
    advance = [net.codec.encode(Action(Op.ADVANCE, slot)) for slot in range(3)]
    refusal, failed = lifecycle.refusals(net, numbers, slots)
    assert (refusal[:, advance] == 0).tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert failed[2, advance].tolist() == [Check.NOT_MEASURED] * 3


@pytest.mark.parametrize(
    ("fields", "culled"),
    [
        ({"measured": True, "contribution": 0.0}, True),
        ({"measured": True, "contribution": -0.0}, True),
        ({"measured": True, "contribution": torch.finfo(torch.float32).tiny}, False),
        ({"measured": True, "contribution": math.nan}, False),
        ({"measured": False, "contribution": 0.0}, False),
    ],
)
def test_probation_ends_a_seed_that_gives_nothing(fields: dict[str, float], culled: bool) -> None:
    after = tick(seed(Stage.PROBATIONARY, **fields), network(), hypers())
    assert stage_of(after) == (Stage.CULLED if culled else Stage.PROBATIONARY)


@pytest.mark.parametrize(("horizon", "limit"), [(25, 5), (50, 5), (60, 6), (200, 20)])
def test_probation_times_out_after_five_epochs_or_a_tenth_of_the_horizon(horizon: int, limit: int) -> None:
    net, slots = network(horizon=horizon), seed(Stage.PROBATIONARY, measured=True, contribution=50.0)
    for _ in range(limit - 1):
        slots = tick(slots, net, hypers())
        assert stage_of(slots) == Stage.PROBATIONARY
    assert stage_of(tick(slots, net, hypers())) == Stage.CULLED


@pytest.mark.parametrize(("others", "budget", "legal"), [(0, 9, True), (0, 8, False), (1, 26, True), (1, 25, False)])
def test_the_budget_counts_every_seed_and_may_be_spent_to_the_last(others: int, budget: int, legal: bool) -> None:
    slots = lifecycle.empty_slots(1, 2, torch.float32, CPU)
    if others:  # a fossilized `norm` of 8 channels in the second slot: 17 parameters
        slots["stage"][0, 1], slots["blueprint"][0, 1], slots["blend"][0, 1] = int(Stage.FOSSILIZED), 0, 0
    _, refusal, failed = decide(slots, GROW, network(), hypers(seed_budget=budget))
    assert (refusal, failed) == ((Refusal.NONE, 0) if legal else (Refusal.GATE_FAILED, Check.OVER_BUDGET))


def test_changing_the_blueprint_frees_the_old_seeds_parameters() -> None:
    change = Action(Op.CHANGE_BLUEPRINT, 0, 1, int(Blend.LINEAR))
    size = 4 * 4 + 2 * 4
    for budget, legal in ((size, True), (size - 1, False)):
        _, refusal, _ = decide(seed(Stage.TRAINING, age=7), change, network(), hypers(seed_budget=budget))
        assert (refusal == Refusal.NONE) == legal
    fresh, _, _ = decide(seed(Stage.PROBATIONARY, age=7, **PROVEN), change, network(), hypers())
    assert (stage_of(fresh), fresh.blueprint[0, 0], fresh.age[0, 0], fresh.alpha[0, 0]) == (Stage.GERMINATED, 1, 0, 0)
    assert not fresh.measured[0, 0] and not fresh.in_snapshot[0, 0]


def test_changing_to_the_same_blueprint_is_refused_before_the_budget_is_asked() -> None:
    change = Action(Op.CHANGE_BLUEPRINT, 0, 0, int(Blend.COSINE))
    _, refusal, failed = decide(seed(Stage.TRAINING), change, network(), hypers(seed_budget=0))
    assert (refusal, failed) == (Refusal.SAME_BLUEPRINT, 0)


@pytest.mark.parametrize("embargo", [0, 1, 2, 5])
@pytest.mark.parametrize("stage", LIVE)
def test_a_culled_slot_is_blocked_for_the_embargo_and_then_free(stage: Stage, embargo: int) -> None:
    net, numbers = network(), hypers(embargo_epochs=embargo)
    slots, refusal, _ = decide(seed(stage), Action(Op.CULL, 0), net, numbers)
    assert (refusal, stage_of(slots)) == (Refusal.NONE, Stage.CULLED)
    for _ in range(max(embargo, 1) + 2):
        same, refusal, _ = decide(slots, GROW, net, numbers)
        assert refusal == Refusal.BLOCKED and stage_of(same) == stage_of(slots)
        slots = tick(slots, net, numbers)
    slots, refusal, _ = decide(slots, GROW, net, numbers)
    assert (refusal, stage_of(slots)) == (Refusal.NONE, Stage.GERMINATED)


def test_a_seed_walks_to_permanence_on_its_own_and_waits_there_for_the_decision() -> None:
    net, numbers = network(auto_advance=True), hypers()
    slots, _, _ = decide(lifecycle.empty_slots(1, 2, torch.float32, CPU), GROW, net, numbers)
    seen = []
    for _ in range(11):
        for name, value in {"evaluations": 1, "gradient_ratio": 1.0, "prospect": 2.0, "contribution": 2.0}.items():
            slots[name][0, 0] = value
        slots["measured"][0, 0] = True
        slots = tick(slots, net, numbers)
        seen.append((stage_of(slots).name, round(slots.alpha[0, 0].item(), 6)))
    ramp = [("BLENDING", alpha) for alpha in (0.2, 0.4, 0.6, 0.8)]
    assert seen == [
        *[("TRAINING", 0.0)] * 3,
        *ramp,
        ("SHADOWING", 1.0),
        *[("PROBATIONARY", 1.0)] * 3,
    ]
    assert slots.age[0, 0] == 11


@pytest.mark.parametrize(("epochs", "target"), [(0, Stage.PROBATIONARY), (1, Stage.SHADOWING)])
def test_shadowing_is_passed_through_where_no_evaluation_is_asked(epochs: int, target: Stage) -> None:
    slots = seed(Stage.BLENDING, **BLENDED)
    slots, _, _ = decide(slots, Action(Op.ADVANCE, 0), network(), hypers(shadowing_epochs=epochs, alpha_target=0.5))
    assert (stage_of(slots), slots.alpha[0, 0], slots.stage_age[0, 0]) == (target, 0.5, 0)


@pytest.mark.parametrize("stage", [s for s in Stage if s != Stage.UNKNOWN])
def test_what_each_operation_is_told_in_each_stage(stage: Stage) -> None:
    net, slots = network(), seed(stage)
    refusal, _ = lifecycle.refusals(net, hypers(), slots)
    told = {
        op: refusal[0, next(i for i, a in enumerate(net.codec.actions) if (a.op, a.slot) == (op, 0))].item()
        for op in (Op.ADVANCE, Op.CULL, Op.FOSSILIZE, Op.CHANGE_BLUEPRINT)
    }
    if stage == Stage.DORMANT:
        assert set(told.values()) == {Refusal.EMPTY}
    elif stage == Stage.FOSSILIZED:
        assert set(told.values()) == {Refusal.PERMANENT}
    elif stage not in LIVE:
        assert set(told.values()) == {Refusal.BLOCKED}
    else:
        advanceable = stage in (Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING)
        assert told[Op.CULL] == Refusal.NONE
        assert told[Op.ADVANCE] == (Refusal.GATE_FAILED if advanceable else Refusal.WRONG_STAGE)
        assert told[Op.FOSSILIZE] == (Refusal.GATE_FAILED if stage == Stage.PROBATIONARY else Refusal.WRONG_STAGE)
    assert refusal[0, 0] == Refusal.NONE


@pytest.mark.parametrize("stage", LIVE)
def test_germinating_in_a_live_slot_is_told_that_it_is_occupied(stage: Stage) -> None:
    assert decide(seed(stage), GROW, network(), hypers())[1] == Refusal.OCCUPIED


@pytest.mark.parametrize("precision", Precision)
def test_a_network_without_slots_knows_only_waiting(precision: Precision) -> None:
    net = build_structure(
        Config(2, (), precision=precision), cnn_host((1, 4, 4), 2, 1, 4, 0), (NORM,), cross_entropy(), CPU
    )
    slots = lifecycle.empty_slots(2, 0, precision.dtype, CPU)
    numbers, val = build_hypers({}, 2, precision.dtype, CPU), torch.zeros(2, dtype=precision.dtype)
    slots, result = lifecycle.apply_action(net, numbers, slots, torch.tensor([0, 1]), val)
    assert net.codec.actions == (WAIT,)
    assert result.refusal.tolist() == [Refusal.NONE, Refusal.OUT_OF_RANGE]
    assert lifecycle.tick(net.config, numbers, slots, val)[0].batch_size == (2, 0)
