"""The table of the life cycle, word for word, and the texts of its codes."""

import pytest
import torch

from esper.leyline.codes import (
    CHECK_TEXT,
    GATE_CHECKS,
    REFUSAL_TEXT,
    VERDICT_TEXT,
    Check,
    Gate,
    Refusal,
    Verdict,
    failed_checks,
)
from esper.leyline.stages import (
    ACTIVE,
    FAILURE,
    HELD,
    ISOLATED,
    LIVE,
    MERGED,
    STAGES,
    TERMINAL,
    TRANSITIONS,
    Alpha,
    Cause,
    Stage,
    Timer,
    edges,
    is_in,
    routes,
    sources,
)

NUMBERS = """UNKNOWN 0, DORMANT 1, GERMINATED 2, TRAINING 3, BLENDING 4, SHADOWING 5, PROBATIONARY 6, FOSSILIZED 7,
CULLED 8, EMBARGOED 9, RESETTING 10"""

TABLE = """
UNKNOWN      -> DORMANT      by INIT
DORMANT      -> GERMINATED   by GERMINATE            through G0
GERMINATED   -> TRAINING     by CLOCK                through G1
TRAINING     -> BLENDING     by ADVANCE CLOCK        through G2
BLENDING     -> SHADOWING    by ADVANCE CLOCK        through G3
SHADOWING    -> PROBATIONARY by ADVANCE CLOCK        through G4 at once
PROBATIONARY -> FOSSILIZED   by FOSSILIZE            through G5
GERMINATED   -> GERMINATED   by CHANGE_BLUEPRINT     through G0
TRAINING     -> GERMINATED   by CHANGE_BLUEPRINT     through G0
BLENDING     -> GERMINATED   by CHANGE_BLUEPRINT     through G0
SHADOWING    -> GERMINATED   by CHANGE_BLUEPRINT     through G0
PROBATIONARY -> GERMINATED   by CHANGE_BLUEPRINT     through G0
GERMINATED   -> CULLED       by CULL GOVERNOR
TRAINING     -> CULLED       by CULL GOVERNOR
BLENDING     -> CULLED       by CULL GOVERNOR
SHADOWING    -> CULLED       by CULL GOVERNOR
PROBATIONARY -> CULLED       by CULL GOVERNOR CLOCK  after PROBATION
CULLED       -> EMBARGOED    by CLOCK
EMBARGOED    -> RESETTING    by CLOCK                after EMBARGO
RESETTING    -> DORMANT      by CLOCK
"""


Written = tuple[Stage, Stage, frozenset[Cause], Gate | None, Timer | None, bool]


def documented() -> set[Written]:
    rows = set()
    for line in TABLE.strip().splitlines():
        edge, _, rest = line.partition(" by ")
        rest, _, timer = rest.partition(" after ")
        straight = rest.endswith(" at once")
        causes, _, gate = rest.removesuffix(" at once").partition(" through ")
        source, target = (Stage[name.strip()] for name in edge.split("->"))
        by = frozenset(Cause[name] for name in causes.split())
        checks = Gate[gate.strip()] if gate else None, Timer[timer.strip()] if timer else None
        rows.add((source, target, by, *checks, straight))
    return rows


def targets(stage: Stage) -> set[Stage]:
    return {edge.target for edge in TRANSITIONS if edge.source == stage}


def test_stages_keep_their_numbers() -> None:
    assert NUMBERS.replace("\n", " ") == ", ".join(f"{stage.name} {stage.value}" for stage in Stage)


def test_the_table_is_the_documented_one() -> None:
    assert {(*e[:2], frozenset(e.causes), *e[3:]) for e in TRANSITIONS} == documented()


def test_no_edge_and_no_cause_is_listed_twice() -> None:
    edges = [(edge.source, edge.target) for edge in TRANSITIONS]
    assert len(set(edges)) == len(edges) == 20
    assert all(edge.causes and len(set(edge.causes)) == len(edge.causes) for edge in TRANSITIONS)


def test_a_cause_leads_from_a_stage_to_one_stage_only() -> None:
    moves = [(edge.source, cause) for edge in TRANSITIONS for cause in edge.causes]
    assert len(set(moves)) == len(moves)


def test_the_only_way_out_of_dormant_is_to_germinate() -> None:
    assert targets(Stage.DORMANT) == {Stage.GERMINATED}
    assert sources(Cause.GERMINATE) == (Stage.DORMANT,)


def test_fossilized_is_the_end_and_is_reached_by_a_decision_only() -> None:
    assert TERMINAL == (Stage.FOSSILIZED,)
    assert [stage for stage in Stage if not targets(stage)] == [Stage.FOSSILIZED]
    assert [edge.causes for edge in TRANSITIONS if edge.target == Stage.FOSSILIZED] == [(Cause.FOSSILIZE,)]


def test_a_culled_slot_has_one_way_back() -> None:
    path = [Stage.CULLED]
    while path[-1] != Stage.DORMANT:
        (following,) = targets(path[-1])
        path.append(following)
    assert path == [Stage.CULLED, Stage.EMBARGOED, Stage.RESETTING, Stage.DORMANT]


def test_every_live_stage_can_be_culled_and_can_change_its_blueprint() -> None:
    for cause in (Cause.CULL, Cause.GOVERNOR, Cause.CHANGE_BLUEPRINT):
        assert set(sources(cause)) == set(LIVE)


def test_every_stage_can_be_reached() -> None:
    reached = {Stage.UNKNOWN}
    for _ in Stage:
        reached |= {edge.target for edge in TRANSITIONS if edge.source in reached}
    assert reached == set(Stage)


def test_sets_of_stages_are_the_documented_ones() -> None:
    assert [int(stage) for stage in LIVE] == [2, 3, 4, 5, 6]
    assert [int(stage) for stage in ACTIVE] == [3, 4, 5, 6, 7]
    assert [int(stage) for stage in FAILURE] == [8, 9, 10]
    assert [int(stage) for stage in ISOLATED] == [3, 4]
    assert [int(stage) for stage in MERGED] == [4, 5, 6, 7]


def test_every_stage_has_a_row_in_the_order_of_life() -> None:
    assert set(STAGES) == set(Stage)
    assert [int(stage) for stage in STAGES] == list(range(11))
    assert len({row.says for row in STAGES.values()}) == len(STAGES)
    assert all(row.says and "\n" not in row.says for row in STAGES.values())


def test_traits_agree_with_the_transitions() -> None:
    assert [stage for stage in Stage if not targets(stage)] == list(TERMINAL)
    assert {stage for stage in LIVE if Stage.CULLED in targets(stage)} == set(LIVE)
    assert set(LIVE) | set(ACTIVE) == set(HELD) and not set(HELD) & set(FAILURE)
    assert set(MERGED) < set(ACTIVE) and set(ISOLATED) < set(ACTIVE)
    assert not set(LIVE) & set(TERMINAL)
    assert list(HELD) == [Stage(number) for number in range(2, 8)]


def test_potentials_rise_along_a_life_and_are_zero_without_a_seed() -> None:
    assert [STAGES[stage].potential for stage in HELD] == [1.0, 2.0, 3.5, 4.5, 5.5, 6.0]
    assert all(row.potential == 0 for stage, row in STAGES.items() if stage not in HELD)


def test_alpha_climbs_where_the_seed_is_blended_in_and_is_full_from_there_on() -> None:
    rows = [(stage, row.alpha) for stage, row in STAGES.items() if row.alpha is not Alpha.KEEP]
    assert rows == [(Stage.BLENDING, Alpha.RAMP), (Stage.SHADOWING, Alpha.FULL)]


def test_every_timer_belongs_to_an_edge_of_the_clock() -> None:
    assert {edge.timer for edge in TRANSITIONS} - {None} == set(Timer)
    assert all(Cause.CLOCK in edge.causes and edge.gate is None for edge in TRANSITIONS if edge.timer is not None)


def test_fresh_seeds_and_removed_ones_have_one_stage_each() -> None:
    for cause, target in ((Cause.INIT, 1), (Cause.GERMINATE, 2), (Cause.CHANGE_BLUEPRINT, 2), (Cause.GOVERNOR, 8)):
        assert list(routes(cause)) == [target]
    assert routes(Cause.CULL) == {Stage.CULLED: tuple(edge.source for edge in edges(Cause.CULL))}
    assert routes(Cause.ADVANCE) == {Stage(n + 1): (Stage(n),) for n in (3, 4, 5)}


def test_sources_lists_where_a_cause_may_act() -> None:
    assert sources(Cause.ADVANCE) == (Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING)
    assert sources(Cause.FOSSILIZE) == (Stage.PROBATIONARY,)
    assert sources(Cause.INIT) == (Stage.UNKNOWN,)


def test_is_in_asks_each_element() -> None:
    stage = torch.arange(11).reshape(1, 11)
    assert is_in(stage, FAILURE).tolist() == [[False] * 8 + [True] * 3]
    assert not is_in(stage, ()).any()
    assert is_in(stage, Stage).all()


@pytest.mark.parametrize(("codes", "texts"), [(Check, CHECK_TEXT), (Refusal, REFUSAL_TEXT), (Verdict, VERDICT_TEXT)])
def test_every_code_has_a_text_of_its_own(codes: type, texts: dict[int, str]) -> None:
    assert list(texts) == list(codes)
    assert all(text and "\n" not in text for text in texts.values())
    assert len(set(texts.values())) == len(texts)


def test_every_check_is_one_bit_and_belongs_to_a_gate() -> None:
    assert [check.value for check in Check] == [1 << bit for bit in range(len(Check))]
    assert list(GATE_CHECKS) == list(Gate)
    made = Check(0)
    for checks in GATE_CHECKS.values():
        made |= checks
    assert list(made) == list(Check)


def test_every_gate_guards_an_edge() -> None:
    assert {edge.gate for edge in TRANSITIONS} - {None} == set(Gate)


@pytest.mark.parametrize("bits", [0, 1, 1024, 8 | 64, 2**11 - 1])
def test_failed_checks_reads_the_bits_in_order(bits: int) -> None:
    assert failed_checks(bits) == [CHECK_TEXT[check] for check in Check if bits & check.value]
