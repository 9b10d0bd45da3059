"""The life cycle against a model in plain Python.

The model is written from the table of the life cycle and the meaning of its numbers, in integers and floats, one slot
at a time; it calls no function of esper. A state machine drives both with decisions, measurements and epochs and
compares every field, and the verdict on every action, after every step.
"""

import itertools
import math
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from esper.kasmina import lifecycle
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import ATTENTION, CONV_SMALL, NORM
from esper.kasmina.objectives import cross_entropy
from esper.kasmina.refusals import legal
from esper.kasmina.structure import Structure, build_structure
from esper.leyline.actions import Action, Blend, Op
from esper.leyline.codes import Check, Refusal
from esper.leyline.config import Config, Precision
from esper.leyline.hypers import build_hypers
from esper.leyline.stages import TRANSITIONS, Cause, Stage
from esper.leyline.state import Slots

ENVS, SLOTS, CHANNELS = 3, 3, (4, 8, 16)
CPU = torch.device("cpu")
LIVE, BLOCKED = range(2, 7), range(8, 11)

MIN_GRADIENT_RATIO, MIN_IMPROVEMENT, MIN_CONTRIBUTION = 0.05, 0.5, 1.0
CHOICES = {
    "embargo_epochs": (0, 1, 2, 3, 4),
    "blend_epochs": (1, 2, 3, 4, 5, 6),
    "shadowing_epochs": (0, 1, 2),
    "sigmoid_steepness": (12.0, 3.0),
    "alpha_target": (1.0, 0.5),
    "alpha_complete": (0.95, 0.8),  # 0.8: four of five linear steps are exactly enough
    "min_training_epochs": (0, 1, 3),
    "min_blending_epochs": (0, 1, 3),
    "probation_epochs": (1, 2, 5),
    "probation_fraction": (0.0, 0.1),
    "seed_budget": (9, 58, 120, 1e9),  # 9 and 58: exactly a plain and a gated `norm` in the first slot
}


# The model


def progress(blend: int, done: int, total: int, steepness: float) -> float:
    """Fraction of its target that alpha has reached."""
    if done >= total:
        return 1.0
    time = done / total
    if blend == 1:  # sigmoid, stretched to end at 0 and 1
        low, here, high = (1 / (1 + math.exp(-steepness * (x - 0.5))) for x in (0, time, 1))
        return (here - low) / (high - low)
    if blend == 3:  # cosine
        return (1 - math.cos(math.pi * time)) / 2
    return time  # linear and gated


def seed_size(slot: int, blueprint: int, blend: int) -> int:
    """Parameters of a seed with its gate."""
    c = CHANNELS[slot]
    hidden = max(8, c // 4)
    gate = c * hidden + 2 * hidden + 1 if blend == 2 else 0
    return (2 * c + 1, 2 * c * max(1, c // 4), c * c + 2 * c)[blueprint] + gate


@dataclass
class ModelSlot:
    stage: int = 1
    blueprint: int = -1
    blend: int = -1
    alpha: float = 0.0
    ramp: int = 0
    age: int = 0
    stage_age: int = 0
    evaluations: int = 0
    measured: bool = False
    contribution: float = 0.0
    contribution_error: float = 0.0
    prospect: float = 0.0
    prospect_error: float = 0.0
    birth_accuracy: float = 0.0
    stage_accuracy: float = 0.0
    improvement: float = 0.0
    gradient_norm: float = 0.0
    gradient_ratio: float = 0.0
    healthy: bool = True
    in_snapshot: bool = False
    target: float = -1.0

    def enter(self, stage: int, accuracy: float) -> None:
        self.stage, self.stage_age, self.evaluations = stage, 0, 0
        self.stage_accuracy, self.improvement = accuracy, 0.0

    def clear(self, stage: int) -> None:
        self.__init__(stage=stage)


@dataclass
class ModelEnv:
    """One environment: its slots, and the numbers it lives by."""

    numbers: dict[str, float]
    auto_advance: bool
    horizon: int

    def __post_init__(self) -> None:
        self.slots = [ModelSlot() for _ in range(SLOTS)]

    def plant(self, slot: int, stage: int, blueprint: int, blend: int, stage_age: int) -> None:
        """Begin in the middle: a slot that is in a stage already."""
        seed = self.slots[slot]
        seed.stage, seed.stage_age = stage, stage_age if stage not in (1, 7) else 0
        if stage in LIVE or stage == 7:
            seed.blueprint, seed.blend, seed.age = blueprint, blend, stage_age
        if stage == 4:
            self.climb(seed)
        elif stage in (5, 6, 7):
            seed.alpha = self.numbers["alpha_target"]

    def goal(self, seed: ModelSlot) -> float:
        """Where a seed's alpha goes."""
        return self.numbers["alpha_target"] if seed.target < 0 else seed.target

    def judge(self, op: int, slot: int, blueprint: int, blend: int, target: int) -> tuple[int, int]:
        """Refusal and failed checks of an action."""
        if op == Op.WAIT:
            return Refusal.NONE, 0
        seed = self.slots[slot]
        allowed = {Op.GERMINATE: (1,), Op.ADVANCE: (3, 4, 5), Op.FOSSILIZE: (6,), Op.RETARGET: (4, 5, 6)}.get(op, LIVE)
        if seed.stage not in allowed:
            named = {1: Refusal.EMPTY, 7: Refusal.PERMANENT} | dict.fromkeys(BLOCKED, Refusal.BLOCKED)
            other = Refusal.OCCUPIED if op == Op.GERMINATE else Refusal.WRONG_STAGE
            return named.get(seed.stage, other), 0
        if op == Op.CHANGE_BLUEPRINT and seed.blueprint == blueprint:
            return Refusal.SAME_BLUEPRINT, 0
        if op == Op.RETARGET and self.goal(seed) == target / 4:
            return Refusal.SAME_TARGET, 0
        failed = 0
        if op in (Op.GERMINATE, Op.CHANGE_BLUEPRINT):
            others = [(i, s) for i, s in enumerate(self.slots) if i != slot and s.blueprint >= 0]
            total = seed_size(slot, blueprint, blend) + sum(seed_size(i, s.blueprint, s.blend) for i, s in others)
            failed = Check.OVER_BUDGET if total > self.numbers["seed_budget"] else 0
        elif op == Op.ADVANCE:
            failed = self.advance_gate(seed)
        elif op == Op.FOSSILIZE:
            failed = (not seed.measured) * Check.NOT_MEASURED | (not seed.healthy) * Check.UNHEALTHY
            failed |= (not seed.contribution >= MIN_CONTRIBUTION) * Check.LOW_CONTRIBUTION
            failed |= (not seed.in_snapshot) * Check.NOT_IN_SNAPSHOT
        return (Refusal.GATE_FAILED if failed else Refusal.NONE), int(failed)

    def advance_gate(self, seed: ModelSlot) -> int:
        numbers = self.numbers
        if seed.stage == 3:
            gained = seed.prospect >= MIN_IMPROVEMENT or seed.improvement >= MIN_IMPROVEMENT
            failed = (seed.stage_age < numbers["min_training_epochs"]) * Check.TOO_YOUNG
            failed |= (not seed.gradient_ratio >= MIN_GRADIENT_RATIO) * Check.LOW_GRADIENT
            failed |= (not seed.healthy) * Check.UNHEALTHY
            return failed | (not (gained and seed.evaluations > 0)) * Check.NO_IMPROVEMENT
        if seed.stage == 4:
            near = numbers["alpha_complete"] * self.goal(seed)
            young = seed.stage_age < numbers["min_blending_epochs"]
            return young * Check.TOO_YOUNG | (seed.alpha < near) * Check.LOW_ALPHA
        return (seed.evaluations < numbers["shadowing_epochs"]) * Check.NOT_MEASURED

    def decide(self, op: int, slot: int, blueprint: int, blend: int, target: int, accuracy: float) -> None:
        """Carry out a legal action."""
        seed = self.slots[slot]
        if op in (Op.GERMINATE, Op.CHANGE_BLUEPRINT):
            seed.clear(2)
            seed.blueprint, seed.blend = blueprint, blend
            seed.birth_accuracy = seed.stage_accuracy = accuracy
        elif op == Op.ADVANCE:
            self.advance(seed, accuracy)
        elif op == Op.CULL:
            seed.clear(8)
        elif op == Op.FOSSILIZE:
            seed.enter(7, accuracy)
        elif op == Op.RETARGET:
            seed.target = target / 4
            seed.alpha = min(seed.alpha, seed.target) if seed.stage == 4 else seed.target

    def climb(self, seed: ModelSlot) -> None:
        seed.ramp += 1
        total, steepness = int(self.numbers["blend_epochs"]), self.numbers["sigmoid_steepness"]
        seed.alpha = max(seed.alpha, self.goal(seed) * progress(seed.blend, seed.ramp, total, steepness))

    def advance(self, seed: ModelSlot, accuracy: float) -> None:
        seed.enter(seed.stage + 1, accuracy)
        if seed.stage == 4:
            self.climb(seed)
        if seed.stage == 5:
            seed.alpha = self.goal(seed)
            if self.numbers["shadowing_epochs"] == 0:
                seed.enter(6, accuracy)

    def tick(self, accuracy: float) -> None:
        for seed in self.slots:
            stage = seed.stage
            seed.age += stage in LIVE
            seed.stage_age += stage in LIVE or stage in BLOCKED
            if stage == 4:
                self.climb(seed)
            if stage == 2:
                seed.enter(3, accuracy)
            elif stage in (3, 4, 5) and self.auto_advance and self.advance_gate(seed) == 0:
                self.advance(seed, accuracy)
            elif stage == 6:
                limit = max(self.numbers["probation_epochs"], self.horizon * self.numbers["probation_fraction"] // 1)
                if seed.stage_age >= limit or (seed.measured and seed.contribution <= 0):
                    seed.clear(8)
            elif stage == 8:
                seed.clear(9)
            elif stage == 9 and seed.stage_age >= self.numbers["embargo_epochs"]:
                seed.clear(10)
            elif stage == 10:
                seed.clear(1)


# The machine

EDGES = {
    (source, target): {c for e in TRANSITIONS if (e.source, e.target) == (source, target) for c in e.causes}
    for source, target in itertools.product(Stage, Stage)
}
CAUSES = {op: Cause[op.name] for op in Op if op not in (Op.WAIT, Op.RETARGET)}
PLACES = tuple(itertools.product(range(ENVS), range(SLOTS)))
PLANTS = st.tuples(
    st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 9, 10)), st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)
)
"""Stage, blueprint, blend and age in which a slot begins."""
ACCURACY = st.lists(st.sampled_from((0.0, 12.5, 99.5)), min_size=ENVS, max_size=ENVS)
GOOD = {
    "evaluations": 3,
    "measured": True,
    "contribution": 1.0,
    "prospect": 0.5,
    "improvement": -1.0,
    "gradient_ratio": 0.05,
    "healthy": True,
    "in_snapshot": True,
}
"""Measurements that open every gate, each exactly on its threshold."""
USELESS = GOOD | {"contribution": 0.0}
"""A seed that the host would not miss."""
ANY = {
    "evaluations": st.integers(0, 3),
    "measured": st.booleans(),
    "contribution": st.sampled_from((-2.0, 0.0, 0.25, 0.99, 1.0, math.nan)),
    "prospect": st.sampled_from((-1.0, 0.49, 0.5, 3.0, math.nan)),
    "improvement": st.sampled_from((-1.0, 0.49, 0.5, 3.0, math.nan)),
    "gradient_ratio": st.sampled_from((0.0, 0.049, 0.05, 2.0, math.nan)),
    "healthy": st.booleans(),
    "in_snapshot": st.booleans(),
}


@cache
def network(
    auto_advance: bool = True, horizon: int = 25, precision: Precision = Precision.FLOAT32, retarget: bool = True
) -> Structure:
    settings = {"auto_advance": auto_advance, "horizon": horizon, "precision": precision, "retarget": retarget}
    config = Config(ENVS, (0, 1, 2), tuple(Blend), **settings)
    host = cnn_host((1, 4, 4), 2, num_blocks=3, base_channels=CHANNELS[0], pool_blocks=0)
    return build_structure(config, host, (NORM, ATTENTION, CONV_SMALL), cross_entropy(), CPU)


def bits(slots: Slots) -> dict[tuple[int, int], bytes]:
    """Every slot's fields as bytes, so that NaN and -0.0 compare too."""
    leaves = [leaf.numpy() for _, leaf in sorted(slots.items())]
    return {place: b"".join(leaf[place].tobytes() for leaf in leaves) for place in PLACES}


@contextmanager
def unwritten(slots: Slots, *others: Tensor) -> Iterator[None]:
    """Check that nothing is written to these tensors meanwhile."""
    leaves = [*slots.values(), *others]
    before = [(leaf._version, leaf.clone()) for leaf in leaves]
    yield
    assert all(now is then for now, then in zip(slots.values(), leaves, strict=False))
    for leaf, (version, copy) in zip(leaves, before, strict=True):
        assert leaf._version == version
        assert leaf.numpy().tobytes() == copy.numpy().tobytes()


class Lifecycle(RuleBasedStateMachine):
    @initialize(
        auto_advance=st.booleans(),
        retarget=st.booleans(),
        horizon=st.sampled_from((25, 60)),
        precision=st.sampled_from(Precision),
        numbers=st.fixed_dictionaries(
            {
                name: st.sampled_from(values) | st.lists(st.sampled_from(values), min_size=ENVS, max_size=ENVS)
                for name, values in CHOICES.items()
            }
        ),
        plants=st.lists(PLANTS, min_size=len(PLACES), max_size=len(PLACES)),
    )
    def build(
        self,
        auto_advance: bool,
        retarget: bool,
        horizon: int,
        precision: Precision,
        numbers: dict[str, float | list[float]],
        plants: list[tuple[int, int, int, int]],
    ) -> None:
        self.structure = network(auto_advance, horizon, precision, retarget)
        self.dtype = precision.dtype
        self.hypers = build_hypers(numbers, ENVS, self.dtype, CPU)
        self.slots = lifecycle.empty_slots(ENVS, SLOTS, self.dtype, CPU)
        own = [{k: v[env] if isinstance(v, list) else v for k, v in numbers.items()} for env in range(ENVS)]
        self.model = [ModelEnv(numbers, auto_advance, horizon) for numbers in own]
        self.blocked: dict[tuple[int, int], int] = {}
        for (env, slot), plant in zip(PLACES, plants, strict=True):
            self.model[env].plant(slot, *plant)
        for field in fields(ModelSlot):
            for env, slot in PLACES:
                self.slots[field.name][env, slot] = getattr(self.model[env].slots[slot], field.name)

    def tensor(self, numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=self.dtype)

    def arrive(
        self, slots: Slots, causes: dict[tuple[int, int], Cause], weighed: Set[tuple[int, int]] = frozenset()
    ) -> None:
        """Take over new slots after checking what every stage change owes to the table."""
        self.before, old = bits(self.slots), self.slots.stage.tolist()
        new, now = slots.stage.tolist(), bits(slots)
        for env, slot in PLACES:
            place, source, target = (env, slot), old[env][slot], new[env][slot]
            if place in weighed:
                assert source == target
                for name in set(slots.keys()) - {"alpha", "target"}:
                    assert bool((slots[name] == self.slots[name])[place] | slots[name].isnan()[place]), name
            elif source == Stage.FOSSILIZED or place not in causes:
                assert now[place] == self.before[place]
            elif source != target:
                path = [(source, target)]
                if path == [(4, 6)] and self.model[env].numbers["shadowing_epochs"] == 0:
                    path = [(4, 5), (5, 6)]
                assert all(causes[place] in EDGES[edge] for edge in path), (source, target, causes[place])
            if source == target == Stage.BLENDING and place not in weighed:
                assert slots.alpha[env, slot] >= self.slots.alpha[env, slot]
            if target == Stage.CULLED != source:
                self.blocked[place] = max(int(self.model[env].numbers["embargo_epochs"]), 1) + 2
        self.slots = slots

    def choose(self, env: int, kind: str, number: int) -> int:
        """An action of a kind; the operation is drawn before its arguments."""
        codec, refusal = self.structure.codec, self.refusal[env]
        if kind == "outside":
            return (-1, codec.size, 10**6)[number % 3]
        fitting = [i for i in range(codec.size) if (refusal[i] == 0) == (kind != "illegal")]
        if kind == "eager":
            forward = (Op.GERMINATE, Op.ADVANCE, Op.FOSSILIZE)
            fitting = [i for i in fitting if codec.actions[i].op in forward] or [0]
        ops = sorted({codec.actions[i].op for i in fitting})
        arguments = [i for i in fitting if codec.actions[i].op == ops[number % len(ops)]]
        return arguments[number // len(ops) % len(arguments)]

    kinds = st.sampled_from(("eager", "eager", "legal", "legal", "illegal", "outside"))
    choices = st.lists(st.tuples(kinds, st.integers(0, 999)), min_size=ENVS, max_size=ENVS)

    @rule(choices=choices, accuracy=ACCURACY)
    def decide(self, choices: list[tuple[str, int]], accuracy: list[float]) -> None:
        codec, causes, results, weighed = self.structure.codec, {}, [], set()
        indices = [self.choose(env, *choice) for env, choice in enumerate(choices)]
        for env, index in enumerate(indices):
            action, verdict = Action(Op.WAIT), (int(Refusal.OUT_OF_RANGE), 0)
            if 0 <= index < codec.size:
                verdict = self.model[env].judge(*codec.actions[index])
                action = codec.actions[index] if verdict[0] == 0 else action
            self.model[env].decide(*action, accuracy[env])
            if action.op in CAUSES:
                causes[env, action.slot] = CAUSES[action.op]
            elif action.op == Op.RETARGET:
                weighed.add((env, action.slot))
            results.append((index, int(action.op), action.slot, *verdict))
        requested, val = torch.tensor(indices), self.tensor(accuracy)
        with unwritten(self.slots, requested, val, *self.hypers.values()):
            slots, result = lifecycle.apply_action(self.structure, self.hypers, self.slots, requested, val)
        assert list(zip(*(column.tolist() for column in result), strict=True)) == results
        self.arrive(slots, causes, weighed)

    @rule(accuracy=ACCURACY)
    def tick(self, accuracy: list[float]) -> None:
        val, old = self.tensor(accuracy), self.slots.stage
        with unwritten(self.slots, val, *self.hypers.values()):
            slots, life = lifecycle.tick(self.structure.config, self.hypers, self.slots, val)
        for env, model in enumerate(self.model):
            model.tick(accuracy[env])
        assert torch.equal(life.before, old)
        assert torch.equal(life.after, slots.stage)
        self.blocked = {place: left - 1 for place, left in self.blocked.items()}
        self.arrive(slots, dict.fromkeys(PLACES, Cause.CLOCK))

    @rule(
        places=st.sets(st.sampled_from(PLACES)), numbers=st.sampled_from((GOOD, USELESS)) | st.fixed_dictionaries(ANY)
    )
    def measure(self, places: set[tuple[int, int]], numbers: dict[str, float]) -> None:
        """Write measurements as an epoch would, into slots that hold a seed."""
        leaves = {name: self.slots[name].clone() for name in numbers}
        for env, slot in places:
            if self.model[env].slots[slot].blueprint >= 0:
                for name, value in numbers.items():
                    leaves[name][env, slot] = value
                    setattr(self.model[env].slots[slot], name, value)
        self.slots = self.slots.replace(**leaves)

    @rule(choices=choices, accuracy=ACCURACY)
    def epoch(self, choices: list[tuple[str, int]], accuracy: list[float]) -> None:
        """A step as the engine takes it, with an epoch that goes well."""
        self.decide(choices, accuracy)
        self.measure(set(PLACES), GOOD)
        self.tick(accuracy)

    @rule(envs=st.lists(st.integers(0, 3).map(lambda n: n == 3), min_size=ENVS, max_size=ENVS))
    def govern(self, envs: list[bool]) -> None:
        """Remove every live seed of some environments, as the governor does."""
        expected = [[bad and seed.stage in LIVE for seed in m.slots] for bad, m in zip(envs, self.model, strict=True)]
        with unwritten(self.slots):
            slots, removed = lifecycle.cull_live(self.slots, torch.tensor(envs))
        assert removed.tolist() == expected
        for env, slot in PLACES:
            if expected[env][slot]:
                self.model[env].slots[slot].clear(8)
        self.arrive(slots, {place: Cause.GOVERNOR for place in PLACES if expected[place[0]][place[1]]})

    @invariant()
    def agrees(self) -> None:
        self.fields_are_the_models()
        self.every_action_is_judged_as_the_model_does()
        self.alpha_is_exact_at_its_ends()
        self.embargo_blocks_and_then_ends()

    def fields_are_the_models(self) -> None:
        for field in fields(ModelSlot):
            leaf = self.slots[field.name].tolist()
            for env, slot in PLACES:
                want, got = getattr(self.model[env].slots[slot], field.name), leaf[env][slot]
                if isinstance(want, float):
                    same = math.isnan(want) == math.isnan(got) and not abs(want - got) > 1e-6
                else:
                    same = want == got
                assert same, f"slot {slot} of {env}: {field.name} {got}, model {asdict(self.model[env].slots[slot])}"

    def every_action_is_judged_as_the_model_does(self) -> None:
        with unwritten(self.slots):
            refusal, failed = lifecycle.refusals(self.structure, self.hypers, self.slots)
            backwards = torch.arange(refusal.shape[1]).flip(0).expand_as(refusal)
            asked = lifecycle.refusals(self.structure, self.hypers, self.slots, backwards)
            allowed = legal(self.structure, self.hypers, self.slots)
        assert torch.equal(asked[0].flip(1), refusal) and torch.equal(asked[1].flip(1), failed)
        self.refusal = refusal.tolist()
        for env, model in enumerate(self.model):
            wanted = [model.judge(*action) for action in self.structure.codec.actions]
            assert allowed[env].tolist() == [reason == 0 for reason, _ in wanted]
            got = list(zip(self.refusal[env], failed[env].tolist(), strict=True))
            for action, ours, theirs in zip(self.structure.codec.actions, wanted, got, strict=True):
                assert theirs == ours, (action, asdict(model.slots[action.slot]))

    def alpha_is_exact_at_its_ends(self) -> None:
        for env, slot in PLACES:
            alpha, stage = self.slots.alpha[env, slot].item(), self.slots.stage[env, slot].item()
            target = self.model[env].goal(self.model[env].slots[slot])
            assert 0 <= alpha <= target
            if stage in (Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED):
                assert alpha == target
            elif stage != Stage.BLENDING:
                assert alpha == 0.0

    def embargo_blocks_and_then_ends(self) -> None:
        codec = self.structure.codec
        for (env, slot), left in self.blocked.items():
            said = {
                self.refusal[env][i]
                for i, action in enumerate(codec.actions)
                if action.op == Op.GERMINATE and action.slot == slot
            }
            if left > 0:
                assert said == {Refusal.BLOCKED}
            elif left == 0 and self.slots.stage[env, slot] == Stage.DORMANT:
                assert said <= {Refusal.NONE, Refusal.GATE_FAILED}  # the budget may still refuse
            if left == 0:
                assert self.slots.stage[env, slot] in (Stage.DORMANT, Stage.GERMINATED)


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
