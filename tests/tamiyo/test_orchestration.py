"""The strategies of orchestration: examples worked out by hand, and laws of plans."""

import pytest
import torch

import esper
from esper.leyline.actions import TARGETS, Op
from esper.leyline.stages import WEIGHED, Stage, is_in
from esper.leyline.state import lock
from esper.runtime.policies import NAMED, orchestrator_of
from esper.tamiyo.orchestration import SlotStrategy, build_orchestrator, plan
from esper.tamiyo.orchestration_policy import carry_out, empty_agenda, orchestration_policy
from esper.tamiyo.policies import PolicyInput
from esper.tamiyo.slot_scores import composite, scores
from esper.utils import rng

KEY = rng.fold_in(rng.key(3), torch.arange(1))
T, B, P = Stage.TRAINING, Stage.BLENDING, Stage.PROBATIONARY


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, 1, backend="eager", retarget=True)


def standing(engine, slots, val_loss=1.0):
    """A state of one environment from (stage, blueprint, alpha, contribution or None) of three slots."""
    state = engine.init(0)
    stage, kind, alpha, effect = zip(*slots, strict=True)
    fields = {"stage": torch.tensor([list(map(int, stage))]), "blueprint": torch.tensor([kind])}
    fields |= {"alpha": torch.tensor([alpha]), "blend": torch.tensor([[1 if each >= 0 else -1 for each in kind]])}
    fields |= {"measured": torch.tensor([[each is not None for each in effect]])}
    fields |= {"contribution": torch.tensor([[each or 0.0 for each in effect]])}
    signals = state.signals.replace(val_loss=torch.tensor([val_loss]), epochs_seen=torch.tensor([1]))
    return lock(state.replace(slots=state.slots.replace(**fields), signals=signals, epoch=torch.tensor([7])))


def planned(engine, strategy, state, growth=0.25):
    orchestrator = build_orchestrator(engine.codec, lambda state: torch.full_like(state.slots.alpha, growth))
    return plan(orchestrator, strategy, state, engine.mask(state), KEY)


def said(engine, made):
    return [engine.codec.describe(index) for index in made.action[0].tolist()]


EMPTY = (Stage.DORMANT, -1, 0.0, None)


def test_the_score_is_the_mean_of_three_parts(engine):
    """0.7 by +4 pp of 10, 0.5 by a loss of 1, 0.8 by a fourth of the host's parameters: 2 / 3; unknown: 1 / 2."""
    state = standing(engine, [(P, 0, 1.0, 4.0), (B, 1, 0.5, None), EMPTY])
    found = scores(state, torch.full_like(state.slots.alpha, 0.25), 10.0)[0].tolist()
    assert found == pytest.approx([(0.7 + 0.5 + 0.8) / 3, (0.5 + 0.5 + 0.8) / 3, 0.5], abs=1e-6)
    half = torch.tensor(0.5)
    assert float(composite(half, half, half)) == 0.5
    assert float(composite(torch.tensor(0.9), torch.tensor(0.25), torch.tensor(0.45))) == pytest.approx(0.7, abs=1e-6)
    own = orchestrator_of(engine).growth(state)[0]
    assert own.tolist() == pytest.approx(
        [int(engine.structure.sizes[slot, slot]) / engine.structure.host.num_params for slot in (0, 1)] + [0.0]
    )


WEAK = (P, 2, 1.0, -50.0)
"""(0 + (1 - loss) + efficiency) / 3."""


def test_replace_changes_the_worst_if_it_is_bad(engine):
    """A loss of 9 leaves 0.1, a growth of 1 leaves 0.5: (0 + 0.1 + 0.5) / 3 = 0.2 < 0.3; -7 pp: 0.25 is not worse."""
    state = standing(engine, [(P, 0, 1.0, -7.0), WEAK, EMPTY], val_loss=9.0)
    made = planned(engine, SlotStrategy.REPLACE, state, growth=1.0)
    words = said(engine, made)
    assert words[0] == words[2] == "WAIT" and words[1].startswith("CHANGE_BLUEPRINT slot 1 ")
    assert "depthwise" not in words[1] and made.gain.tolist() == pytest.approx([0.3], abs=1e-6) and made.risk == 0.3
    assert made.alpha.isnan().all() and bool(made.succeeds)
    good = standing(engine, [(P, 0, 1.0, 9.0), (P, 1, 1.0, 2.0), EMPTY])
    made = planned(engine, SlotStrategy.REPLACE, good)
    assert said(engine, made) == ["WAIT"] * 3 and made.gain.tolist() == [0.0] and not bool(made.succeeds)


def test_diversify_fills_two_places_with_kinds_by_turns_at_a_low_weight(engine):
    state = standing(engine, [EMPTY, WEAK, EMPTY], val_loss=9.0)
    made = planned(engine, SlotStrategy.DIVERSIFY, state, growth=1.0)
    names = engine.codec.blueprint_names
    assert made.rank[0].tolist() == [1, 0, 2]
    assert said(engine, made) == [
        f"GERMINATE slot 0 {names[1]} sigmoid",
        f"CHANGE_BLUEPRINT slot 1 {names[0]} sigmoid",
        "WAIT",
    ]
    assert made.alpha[0, :2].tolist() == pytest.approx([0.3, 0.3], abs=1e-6) and made.alpha[0, 2].isnan()
    assert made.gain.tolist() == pytest.approx([0.4], abs=1e-6) and made.risk == 0.3


@pytest.mark.parametrize(
    ("alphas", "kept", "weight", "action"),
    [((0.5, 0.25, 0.9), 0, 0.7, "RETARGET slot 0 alpha 0.75"), ((0.75, 0.25, 0.9), 0, 0.8, None)],
)
def test_specialize_keeps_the_best_half_and_raises_its_weight(engine, alphas, kept, weight, action):
    """Of three, max(1, 3 // 2) = 1 stays; 0.5 + 0.2 = 0.7, and 0.75 + 0.2 is cut to 0.8: nearest 0.75, as it is."""
    effects = (6.0, 3.0, 1.0)
    slots = [(P, kind, alpha, effect) for kind, (alpha, effect) in enumerate(zip(alphas, effects, strict=True))]
    state = standing(engine, slots)
    if action is None:
        state = lock(state.replace(slots=state.slots.replace(target=state.slots.alpha)))
    made = planned(engine, SlotStrategy.SPECIALIZE, state)
    assert said(engine, made) == [action or "WAIT", "CULL slot 1", "CULL slot 2"]
    assert made.alpha[0, kept].item() == pytest.approx(weight, abs=1e-6) and made.alpha[0, 1:].isnan().all()
    assert made.gain.tolist() == pytest.approx([0.2], abs=1e-6) and made.risk == 0.4 and bool(made.succeeds)


def test_ensemble_fills_every_slot_and_gives_all_the_same_weight(engine):
    state = standing(engine, [(P, 0, 1.0, 3.0), EMPTY, (T, 1, 0.0, None)])
    made = planned(engine, SlotStrategy.ENSEMBLE, state)
    words = said(engine, made)
    assert words[0] == "RETARGET slot 0 alpha 0.25" and words[1].startswith("GERMINATE slot 1 ") and words[2] == "WAIT"
    assert made.alpha[0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert made.gain.tolist() == pytest.approx([0.45], abs=1e-6) and made.risk == 0.2
    assert made.possible.all(), "a seed in TRAINING gets its weight later"


def test_blocked_and_permanent_slots_are_left_alone(engine):
    state = standing(engine, [(Stage.FOSSILIZED, 0, 1.0, -50.0), (Stage.EMBARGOED, -1, 0.0, None), EMPTY])
    for strategy in SlotStrategy:
        made = planned(engine, strategy, state)
        assert said(engine, made)[:2] == ["WAIT"] * 2 and made.alpha[0, :2].isnan().all()


def test_plans_are_legal_and_of_each_environment_alone(small_task, walk):
    engine = esper.make(small_task, 6, backend="eager", retarget=True)
    states, _ = walk(engine, 4, 8)
    orchestrator = orchestrator_of(engine)
    for state in states[::2]:
        mask, key = engine.mask(state), rng.fold_in(state.key, 1)
        for strategy in SlotStrategy:
            made = plan(orchestrator, strategy, state, mask, key)
            assert bool(mask.gather(1, made.action).all())
            acting = made.action > 0
            assert torch.equal(engine.codec.slot[made.action][acting], acting.nonzero()[:, 1])
            rows = torch.tensor([4, 1])
            few = plan(orchestrator, strategy, state[rows], mask[rows], key[rows])
            for name in ("action", "rank", "asked", "possible", "gain"):
                assert torch.equal(getattr(few, name), getattr(made, name)[rows])


def test_a_plan_is_carried_out_step_by_step_with_a_rest_behind_it(small_task):
    """DIVERSIFY plants two seeds, weighs them as soon as they reach the output, and rests for five epochs."""
    engine = esper.make(small_task, 2, backend="eager", retarget=True, probation_epochs=30, min_blending_epochs=1)
    policy, state = orchestration_policy(SlotStrategy.DIVERSIFY, orchestrator_of(engine)), engine.init(0)
    memory, ops = policy.init(2), []
    for number in range(9):
        key = rng.fold_in(state.key, number)
        memory, decision = policy.act(memory, PolicyInput(state, engine.observe(state), engine.mask(state), key))
        state, event = engine.step(state, decision.action)
        assert not event.result.refusal.any()
        ops.append(engine.codec.op[decision.action[0]].item())
        weighed = is_in(state.slots.stage, WEIGHED) & (state.slots.target >= 0)
        assert bool((state.slots.alpha[weighed] <= 0.25 + 1e-6).all())
    assert ops[:2] == [Op.GERMINATE] * 2 and Op.RETARGET in ops[2:5]
    assert Op.GERMINATE not in ops[2:5], "the rest"


def test_without_the_operation_weights_are_left_as_they_are(small_task):
    engine = esper.make(small_task, 1, backend="eager")
    state = standing(engine, [(P, 0, 1.0, 3.0), (P, 1, 1.0, 3.0), (P, 2, 1.0, 3.0)])
    made = planned(engine, SlotStrategy.ENSEMBLE, state)
    assert said(engine, made) == ["WAIT"] * 3 and not made.possible.any() and not bool(made.succeeds)
    agenda = empty_agenda(1, 3, torch.device("cpu"))._replace(alpha=made.alpha)
    assert carry_out(orchestrator_of(engine), agenda, state, engine.mask(state))[1].tolist() == [0]
    assert {strategy.value for strategy in SlotStrategy} <= NAMED.keys() and len(TARGETS) == 5
