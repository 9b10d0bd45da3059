"""Random-legal by its frequencies; the rule of thumb against one environment's rules in plain Python."""

import pytest
import torch

import esper
from esper.leyline.actions import NONE, Action, Blend, Op, build_codec
from esper.leyline.stages import FAILURE, LIVE, Stage
from esper.tamiyo.baselines import NEVER, HeuristicConfig, Memory, heuristic, init_heuristic, random_legal
from esper.utils import rng

CODEC = build_codec(((0, 1, 2), (0, 2)), (Blend.LINEAR, Blend.SIGMOID), ("a", "b", "c"))
ENVS = 24


def random_mask(rows, seed, density=0.3):
    mask = torch.rand(rows, CODEC.size, generator=torch.Generator().manual_seed(seed)) < density
    mask[:, 0] = True
    mask[::5, 1:] = False
    return mask


def test_random_legal_draws_the_op_first():
    mask = torch.zeros(CODEC.size, dtype=torch.bool)
    mask[[0, *(CODEC.encode(Action(Op.CULL, slot)) for slot in (0, 1))]] = True
    mask[CODEC.op == int(Op.GERMINATE)] = True
    rows = 30_000
    action = random_legal(CODEC)(mask.expand(rows, -1), rng.split(rng.key(0), rows))
    frequency = torch.bincount(action, minlength=CODEC.size) / rows
    per_op = {op: int((mask & (CODEC.op == int(op))).sum()) for op in Op}
    for index, each in enumerate(CODEC.actions):
        expected = 1 / 3 / per_op[each.op] if mask[index] else 0.0
        deviation = (expected * (1 - expected) / rows) ** 0.5
        assert abs(frequency[index].item() - expected) <= 5 * deviation, CODEC.describe(index)


def test_random_legal_is_never_illegal_and_rows_are_their_own():
    rows = 10_000
    mask, policy = random_mask(rows, 1), random_legal(CODEC)
    for step in range(5):
        key = rng.fold_in(rng.key(step), torch.arange(rows))
        action = policy(mask, key)
        assert mask.gather(1, action.unsqueeze(1)).all()
        assert (action[::5] == 0).all(), "WAIT where nothing else is legal"
        assert torch.equal(policy(mask[100:110], key[100:110]), action[100:110])


class HeuristicModel:
    """The rules for one environment, after the text: numbers, lists and ifs."""

    def __init__(self, config):
        self.config = config
        self.rotation = [CODEC.blueprint_names.index(name) for name in config.rotation] or [0, 1, 2]
        self.passed_over = 0
        self.forget()

    def forget(self):
        self.penalty, self.turn, self.culled_at, self.held = [0.0] * 3, 0, NEVER, [NONE, NONE]

    def decide(self, epoch, signals, slots, legal):
        """signals: dict; slots: list of dicts; legal: set of Actions."""
        if epoch == 0:
            self.forget()
        self.penalty = [value * self.config.decay for value in self.penalty]
        for slot, held in zip(slots, self.held, strict=True):
            if held != NONE and slot["stage"] in FAILURE:
                self.culled_at = epoch - 1
                self.penalty[held] += self.config.penalty
        self.held = [slot["blueprint"] if slot["stage"] in LIVE else NONE for slot in slots]
        for number, slot in enumerate(slots):
            useful = slot["measured"] and slot["contribution"] > self.config.least_contribution
            if useful and Action(Op.FOSSILIZE, number) in legal:
                return Action(Op.FOSSILIZE, number)
        for number in range(len(slots)):
            if Action(Op.ADVANCE, number) in legal:
                return Action(Op.ADVANCE, number)
        for number, slot in enumerate(slots):
            if self.useless(slot) and Action(Op.CULL, number) in legal:
                return Action(Op.CULL, number)
        live = sum(slot["stage"] in LIVE for slot in slots)
        settled = signals["stable"] or signals["plateau"] >= self.config.plateau_epochs
        late = epoch >= self.config.min_epochs and epoch - self.culled_at >= self.config.embargo
        return self.germinate(legal) if settled and late and live < self.config.max_live else Action(Op.WAIT)

    def useless(self, slot):
        if slot["stage"] in (Stage.TRAINING, Stage.BLENDING):
            return slot["stage_age"] >= self.config.cull_after and slot["improvement"] < -self.config.max_drop
        bad = slot["contribution"] <= self.config.least_contribution
        return slot["stage"] == Stage.PROBATIONARY and slot["measured"] and bad

    def germinate(self, legal):
        blend = int(self.config.blend)
        length = len(self.rotation)
        order = [(self.turn + step) % length for step in range(length)]
        choices = []
        for place in order:
            kind = self.rotation[place]
            where = [slot for slot in (0, 1) if Action(Op.GERMINATE, slot, kind, blend) in legal]
            if where:
                choices.append((place, kind, where[0]))
        for place, kind, slot in choices:
            if self.penalty[kind] < self.config.threshold:
                self.turn = (place + 1) % length
                return Action(Op.GERMINATE, slot, kind, blend)
            self.passed_over += 1
        if not choices:
            return Action(Op.WAIT)
        _, kind, slot = min(choices, key=lambda choice: self.penalty[choice[1]])
        return Action(Op.GERMINATE, slot, kind, blend)


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, num_envs=ENVS, slots=(0, 1))


@pytest.fixture(scope="module")
def fresh(engine):
    return engine.init(0)


def imagine(fresh, seed, epoch):
    """A state with random slots and signals."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high, *shape):
        return torch.randint(low, high, (ENVS, *shape), generator=generator)

    stage = whole(1, 11, 2)
    stage = torch.where(whole(0, 3, 1) == 0, int(Stage.DORMANT), stage)
    empty = (stage == int(Stage.DORMANT)) | sum(stage == int(each) for each in FAILURE).bool()
    slots = fresh.slots.replace(
        stage=stage,
        blueprint=torch.where(empty, NONE, whole(0, 3, 2)),
        stage_age=whole(0, 9, 2),
        improvement=whole(-8, 9, 2) / 2.0,
        contribution=whole(-2, 3, 2).float(),
        measured=whole(0, 3, 2) > 0,
    )
    signals = fresh.signals.replace(stable=whole(0, 2) > 0, plateau=whole(0, 6))
    return fresh.replace(slots=slots, signals=signals, epoch=epoch)


CONFIGS = {
    "defaults": HeuristicConfig(),
    "eager": HeuristicConfig(max_live=3, min_epochs=0, embargo=0, plateau_epochs=0, blend=Blend.LINEAR, decay=0.95),
    "choosy": HeuristicConfig(rotation=("c", "a"), max_live=2, min_epochs=1, embargo=2, least_contribution=1.0),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("density", [0.15, 0.5])
def test_heuristic_is_the_single_environment_rule(fresh, name, density):
    config = CONFIGS[name]
    models = [HeuristicModel(config) for _ in range(ENVS)]
    memory = init_heuristic(CODEC, ENVS)
    seen = set()
    for step in range(60):
        epoch = (step + torch.arange(ENVS)) % 25
        state = imagine(fresh, 1000 + step, epoch)
        mask = random_mask(ENVS, 2000 + step, density)
        before, versions = memory.clone(), {key: memory[key]._version for key in Memory.__annotations__}
        following, action = heuristic(config, CODEC, memory, state, mask)
        assert all(torch.equal(memory[k], before[k]) and memory[k]._version == v for k, v in versions.items())
        assert mask.gather(1, action.unsqueeze(1)).all() and action.dtype == torch.int64
        for env, model in enumerate(models):
            slots = [{k: state.slots[k][env, s].item() for k in SLOT_KEYS} for s in range(2)]
            signals = {key: state.signals[key][env].item() for key in ("stable", "plateau")}
            legal = {CODEC.actions[index] for index in range(CODEC.size) if mask[env, index]}
            expected = model.decide(epoch[env].item(), signals, slots, legal)
            assert CODEC.decode(action[env].item()) == expected, (step, env)
            assert following.turn[env].item() == model.turn
            assert following.culled_at[env].item() == model.culled_at
            assert following.held[env].tolist() == model.held
            assert following.penalty[env].tolist() == pytest.approx(model.penalty, rel=1e-5)
            seen.add(expected.op)
        memory = following
    assert seen == {Op.WAIT, Op.GERMINATE, Op.ADVANCE, Op.CULL, Op.FOSSILIZE}
    assert sum(model.passed_over for model in models) > 10, "penalties matter"


SLOT_KEYS = ("stage", "blueprint", "stage_age", "improvement", "contribution", "measured")


def quiet(fresh, epoch, **slots):
    """Stable hosts, empty slots but for what is given."""
    signals = fresh.signals.replace(stable=torch.ones(ENVS, dtype=torch.bool))
    leaves = {name: torch.as_tensor(value).expand(ENVS, 2).clone() for name, value in slots.items()}
    return fresh.replace(slots=fresh.slots.replace(**leaves), signals=signals, epoch=torch.full((ENVS,), epoch))


def only(*actions):
    mask = torch.zeros(ENVS, CODEC.size, dtype=torch.bool)
    mask[:, [0, *map(CODEC.encode, actions)]] = True
    return mask


GERMINATIONS = tuple(Action(Op.GERMINATE, 1, kind, int(Blend.SIGMOID)) for kind in (0, 2))


@pytest.mark.parametrize("culprit", ["decision", "clock or governor"])
def test_a_cull_is_remembered(fresh, culprit):
    """The penalty bites after the embargo: a faster one would be gone by then."""
    config, memory = HeuristicConfig(), init_heuristic(CODEC, ENVS)
    age = 5 if culprit == "decision" else 1
    harmful = {"stage": [int(Stage.TRAINING), 1], "blueprint": [0, -1], "stage_age": age, "improvement": [-3.0, 0]}
    memory, action = heuristic(
        config, CODEC, memory, quiet(fresh, 7, **harmful), only(Action(Op.CULL, 0), *GERMINATIONS)
    )
    assert (action == (CODEC.encode(Action(Op.CULL, 0)) if culprit == "decision" else 0)).all()
    chosen = {}
    for epoch in range(8, 31):
        state = quiet(fresh, epoch, stage=[int(Stage.EMBARGOED if epoch < 14 else Stage.DORMANT), 1])
        memory, action = heuristic(config, CODEC, memory, state, only(*GERMINATIONS))
        assert (action == action[0]).all()
        chosen[epoch] = CODEC.decode(action[0].item())
    assert all(chosen[epoch].op == Op.WAIT for epoch in range(8, 12)), "embargo"
    assert all(chosen[epoch].blueprint == 2 for epoch in range(12, 22)), "the culled kind is passed over"
    assert {chosen[epoch].blueprint for epoch in range(22, 31)} == {0, 2}, "and forgiven"


def test_the_least_penalised_is_taken_when_all_are(fresh):
    memory = init_heuristic(CODEC, ENVS)
    memory = memory.replace(penalty=torch.tensor([3.0, 0.0, 2.0]).expand(ENVS, 3).clone())
    after, action = heuristic(HeuristicConfig(), CODEC, memory, quiet(fresh, 9), only(*GERMINATIONS))
    assert (action == CODEC.encode(GERMINATIONS[1])).all() and (after.turn == 0).all()


def test_an_episode_begins_with_an_empty_memory(fresh):
    memory = init_heuristic(CODEC, ENVS)
    used = memory.replace(
        penalty=memory.penalty + 5, turn=memory.turn + 1, culled_at=memory.culled_at * 0 + 24, held=memory.held + 1
    )
    state = quiet(fresh, 0)
    after, _ = heuristic(HeuristicConfig(), CODEC, used, state, only())
    assert all(torch.equal(after[key], memory[key]) for key in Memory.__annotations__)


def test_an_unmeasured_seed_waits(fresh):
    state = quiet(fresh, 9, stage=[int(Stage.PROBATIONARY), 1], blueprint=[0, -1])
    legal = only(Action(Op.CULL, 0), Action(Op.FOSSILIZE, 0))
    _, action = heuristic(HeuristicConfig(), CODEC, init_heuristic(CODEC, ENVS), state, legal)
    assert (action == 0).all()


def play(engine, epochs):
    config = HeuristicConfig(min_epochs=1, plateau_epochs=0, embargo=0)
    state, memory, ops = engine.init(0), init_heuristic(engine.codec, engine.config.num_envs), set()
    for _ in range(epochs):
        mask = engine.mask(state)
        memory, action = heuristic(config, engine.codec, memory, state, mask)
        assert mask.gather(1, action.unsqueeze(1)).all()
        ops |= {Op(op) for op in engine.codec.op[action].tolist()}
        state, _ = engine.step(state, action)
    return state, memory, ops


def test_it_passes_the_gates_of_an_engine(small_task):
    settings = {"slots": (0, 1), "steps_per_epoch": 12, "host_lr": 0.1, "seed_lr": 0.1, "snapshot_epochs": 1}
    state, _, ops = play(esper.make(small_task, num_envs=16, auto_advance=False, **settings), 12)
    assert ops >= {Op.GERMINATE, Op.ADVANCE, Op.FOSSILIZE}
    assert (state.slots.stage == int(Stage.FOSSILIZED)).any(1).sum() >= 8, "most environments made a seed permanent"


def test_seeds_that_the_clock_culls_are_charged(small_task):
    """Hardly trained seeds contribute nothing: the clock culls them in the step that takes them into PROBATIONARY."""
    _, memory, ops = play(esper.make(small_task, num_envs=2, auto_advance=False), 8)
    assert Op.CULL not in ops and (memory.penalty > 0).any(1).all()


def test_without_slots_everything_waits(small_task):
    engine = esper.make(small_task, num_envs=2, slots=())
    state = engine.init(0)
    mask = engine.mask(state)
    memory, action = heuristic(HeuristicConfig(), engine.codec, init_heuristic(engine.codec, 2), state, mask)
    assert (action == 0).all() and (memory.turn == 0).all()
    assert (random_legal(engine.codec)(mask, state.key) == 0).all()


@pytest.mark.parametrize(
    "field",
    [
        {"decay": 1.5},
        {"decay": -0.1},
        {"threshold": 0.0},
        {"max_live": 0},
        {"penalty": float("nan")},
        {"embargo": -1},
        {"blend": 1},
        {"rotation": ["a"]},
        {"rotation": ("a", "a")},
    ],
)
def test_numbers_are_checked(field):
    with pytest.raises(ValueError, match=rf"heuristic\.{next(iter(field))} = .*expected"):
        HeuristicConfig(**field)


@pytest.mark.parametrize("field", [{"rotation": ("nothing",)}, {"blend": Blend.GATED}])
def test_what_is_not_on_offer_is_refused(fresh, field):
    with pytest.raises(ValueError, match="expected"):
        heuristic(HeuristicConfig(**field), CODEC, init_heuristic(CODEC, ENVS), quiet(fresh, 1), only())
