"""A random life of bypasses beside a plain composite: whatever is said of them is what ``torch.nn`` modules say.

Each environment of each state is built a second time from modules, whose numbers are read from the state's rows.
Accuracy, contributions, prospects, Shapley values, parameter counts, observations, masks and gates are then taken from
these by brute force.
"""

from functools import cache
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

import esper
from esper.kasmina.bypass_blueprints import conv_bypass, linear_probe, map_bypass
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_LIGHT
from esper.kasmina.lifecycle import apply_action
from esper.kasmina.slot_table import take_table
from esper.kasmina.structure import seed_sizes
from esper.leyline.actions import Action, Blend, Op
from esper.leyline.config import Isolation, Precision
from esper.leyline.stages import ACTIVE, HELD, MERGED, Stage
from esper.tolaria.evaluation import evaluate, shapley_values
from esper.tolaria.synthetic import synthetic

E, CLASSES, EPOCHS = 5, 4, 12
SLOTS = (0, "input:logits", "block0:block1", "block1:logits")
BLUEPRINTS = (CONV_LIGHT, conv_bypass(4, 2), conv_bypass(4, 1, "group"), map_bypass(4, 1, 1), linear_probe())
OFFERS = [
    {"conv_light"},
    {"conv4x2", "conv4x1_group", "probe"},
    {"map4x1_pool1"},
    {"conv4x2", "conv4x1_group", "probe"},
]
CHANNELS, SIDES = (2, 1, 2, 4), (4, 8, 4, 2)
"""Of what each slot reads."""


def block(into: int, out: int, pool: bool, groups: int = 0) -> list[nn.Module]:
    norm = nn.GroupNorm(groups, out) if groups else nn.BatchNorm2d(out)
    return [nn.Conv2d(into, out, 3, padding=1, bias=False), norm, nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


class Light(nn.Module):
    """x + relu(norm(conv(x)))."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(*block(2, 2, False, groups=2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def seed_module(kind: int, slot: int) -> nn.Module:
    into, side = CHANNELS[slot], SIDES[slot]
    match BLUEPRINTS[kind].name:
        case "conv_light":
            return Light()
        case "conv4x2":
            return nn.Sequential(*block(into, 4, True), *block(4, 8, side >= 4), *head(8))
        case "conv4x1_group":
            return nn.Sequential(*block(into, 4, True, groups=1), *head(4))
        case "map4x1_pool1":
            return nn.Sequential(*block(into, 4, True), nn.Conv2d(4, 4, 1, bias=False))
    return nn.Sequential(nn.Flatten(), nn.Linear(into * side**2, CLASSES))


def gate_module(slot: int) -> nn.Module:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[slot], 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid()
    )


@cache
def size_of(kind: int, slot: int, gated: bool) -> int:
    """Parameters of a seed that might be."""
    with torch.random.fork_rng(devices=[]):
        modules = [seed_module(kind, slot), *([gate_module(slot)] if gated else [])]
    return sum(param.numel() for module in modules for param in module.parameters())


def load(module: nn.Module, params: Tensor, held: Tensor) -> nn.Module:
    """Put rows into a module, in inference form."""
    size = sum(part.numel() for part in module.double().parameters())
    vector_to_parameters(params[:size].clone(), module.parameters())
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    own = [row for norm in norms for row in (norm.running_mean, norm.running_var)]
    sizes = [part.numel() for part in own]
    for mine, given in zip(own, held[: sum(sizes)].split(sizes), strict=True):
        mine.copy_(given)
    return module.eval()


class Composite:
    """One environment."""

    def __init__(self, engine, state, env: int) -> None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # initial values, all overwritten
            self.host = [nn.Sequential(*block(1, 2, True)), nn.Sequential(*block(2, 4, True)), nn.Sequential(*head(4))]
            load(nn.Sequential(*self.host), state.host.params[env], state.buffers[env])
            self.seeds, self.gates = {}, {}
            for number, slot in enumerate(engine.structure.slots):
                row, held = state.seeds.params[env, slot.columns], state.seed_buffers[env, slot.buffer_columns]
                if (kind := int(state.slots.blueprint[env, number])) >= 0:
                    self.seeds[number] = load(seed_module(kind, number), row, held)
                    if state.slots.blend[env, number] == int(Blend.GATED):
                        self.gates[number] = load(
                            gate_module(number), row[slot.gate_columns.start - slot.start :], held
                        )
        stages = [Stage(stage) for stage in state.slots.stage[env].tolist()]
        self.alphas = state.slots.alpha[env].tolist()
        self.merged = [number for number, stage in enumerate(stages) if stage in MERGED]
        self.training = [number for number, stage in enumerate(stages) if stage is Stage.TRAINING]

    def size(self, number: int) -> int:
        """Parameters of a seed with its gate."""
        parts = [part[number] for part in (self.seeds, self.gates) if number in part]
        return sum(param.numel() for part in parts for param in part.parameters())

    @torch.no_grad()
    def right(self, data, alphas: dict[int, float]) -> Tensor:
        """Which validation samples are classified rightly, with some alphas changed."""
        x = data.validation.inputs

        def grown(slot: int, source: Tensor) -> tuple[Tensor | float, Tensor | float]:
            alpha = alphas.get(slot, self.alphas[slot])
            if slot not in self.seeds or alpha == 0:
                return 0.0, 0.0
            gate, seed = self.gates.get(slot), self.seeds[slot](source)
            return alpha * (1.0 if gate is None else gate(source).reshape(-1, *(1,) * (seed.dim() - 1))), seed

        first = self.host[0](x)
        weight, s = grown(0, first)
        first = first + weight * (s - first)
        second = self.host[1](first)
        weight, s = grown(2, first)
        second = second + weight * s
        logits = self.host[2](second)
        for slot, source in ((1, x), (3, second)):
            weight, s = grown(slot, source)
            logits = logits + weight * s
        return (logits.argmax(1) == data.validation.targets).double()

    def accuracy(self, data, off=()) -> float:
        return 100 * self.right(data, dict.fromkeys(off, 0.0)).mean().item()


@pytest.fixture(scope="module")
def engine(small_task):
    task = esper.Task(
        "bypasses",
        cnn_host((1, 8, 8), CLASSES, num_blocks=2, base_channels=2),
        BLUEPRINTS,
        synthetic((1, 8, 8), num_classes=CLASSES, num_train=64, num_val=90, noise=1.0),
        small_task.settings | {"slots": SLOTS, "batch_size": 16, "seed_lr": 0.2, "alpha_target": 0.8},
    )
    numbers = {"blends": (Blend.LINEAR, Blend.GATED), "isolation": Isolation.OBJECTIVE, "precision": Precision.FLOAT64}
    return esper.make(task, E, backend="eager", **numbers, min_improvement=1.0, min_contribution=1.0, seed_budget=900.0)


@pytest.fixture(scope="module")
def life(engine, walk):
    """Per epoch: the state before, after the decision, and after the epoch; and its composites."""
    states, actions = walk(engine, 4, EPOCHS)
    found = []
    for before, action, after in zip(states, actions, states[1:], strict=False):
        slots, _ = apply_action(engine.structure, engine.hypers, before.slots, action, before.signals.val_accuracy)
        decided = after.replace(slots=slots)  # what the epoch was trained and evaluated with
        found.append((before, decided, after, [Composite(engine, decided, env) for env in range(E)]))
    return found


def test_the_life_is_a_full_one(life):
    """Every slot is seen in TRAINING and merged, some through a gate; every blueprint fits somewhere and is grown."""
    stages = torch.cat([decided.slots.stage for _, decided, _, _ in life])
    for stages_of in ((Stage.TRAINING,), MERGED):
        assert torch.isin(stages, torch.tensor(stages_of)).any(0).all()
    assert (stages == int(Stage.FOSSILIZED)).any()
    assert {int(k) for _, decided, _, _ in life for k in decided.slots.blueprint.unique()} == {-1, 0, 1, 2, 3, 4}
    assert any(one.gates and set(one.gates) & set(one.merged) for *_, composites in life for one in composites)


def test_accuracy_contributions_and_prospects(engine, life):
    for _, decided, _, composites in life:
        table = take_table(decided.slots)
        plan = engine.backend.plan(table, torch.device("cpu"))
        found = evaluate(engine.backend, engine.hypers, decided, table, plan, engine.data)
        for env, one in enumerate(composites):
            own = one.right(engine.data, {})
            assert found.accuracy[env].item() == pytest.approx(100 * own.mean().item(), abs=1e-9)
            changes = {slot: own - one.right(engine.data, {slot: 0.0}) for slot in one.merged}
            changes |= {slot: one.right(engine.data, {slot: 0.8}) - own for slot in one.training}
            assert found.measured[env].nonzero().flatten().tolist() == sorted(changes)
            for slot, change in changes.items():
                assert found.effect[env, slot].item() == pytest.approx(100 * change.mean().item(), abs=1e-9)
                error = 100 * change.std(correction=0).item() / change.numel() ** 0.5
                assert found.effect_error[env, slot].item() == pytest.approx(error, abs=1e-9)


def test_shapley_values_are_means_over_all_orders(engine, life):
    for _, decided, _, composites in life[::3]:
        table = take_table(decided.slots)
        plan = engine.backend.plan(table, torch.device("cpu"))
        found = shapley_values(engine.backend, engine.hypers, decided, table, plan, engine.data)
        for env, one in enumerate(composites):
            gains = dict.fromkeys(range(4), 0.0)
            orders = list(permutations(one.merged))
            for order in orders:
                for place, slot in enumerate(order):
                    gain = one.accuracy(engine.data, order[place + 1 :]) - one.accuracy(engine.data, order[place:])
                    gains[slot] += gain / len(orders)
            assert found[env].tolist() == pytest.approx(list(gains.values()), abs=1e-9)


def test_sizes_and_observations(engine, life):
    columns = {name: place for place, name in enumerate(engine.columns)}
    host = sum(param.numel() for part in life[0][3][0].host for param in part.parameters())
    assert host == engine.structure.host.num_params
    for _, decided, _, composites in life:
        seen, sizes = engine.observe(decided), seed_sizes(engine.structure, decided.slots)
        for env, one in enumerate(composites):
            assert sizes[env].tolist() == [one.size(slot) for slot in range(4)]
            growth = sum(one.size(slot) for slot in range(4)) / host
            assert seen[env, columns["growth"]].item() == pytest.approx(growth / (1 + growth))
            for slot, kind in enumerate(decided.slots.blueprint[env].tolist()):
                hot = [seen[env, columns[f"slot{slot}.blueprint={each.name}"]].item() for each in BLUEPRINTS]
                assert hot == [float(number == kind) for number in range(len(BLUEPRINTS))]
        assert seen.abs().max() <= 1


def test_masks_offer_what_fits_within_the_budget(engine, life):
    assert [{BLUEPRINTS[kind].name for kind in slot.offers} for slot in engine.structure.slots] == OFFERS
    refused = 0
    for before, *_ in life:
        mask = engine.mask(before)
        for env in range(E):
            one = Composite(engine, before, env)
            for action, legal in zip(engine.codec.actions, mask[env].tolist(), strict=True):
                if action.op is not Op.GERMINATE:
                    continue
                added = size_of(action.blueprint, action.slot, action.blend == Blend.GATED)
                fits = sum(one.size(slot) for slot in range(4)) + added <= 900
                empty = before.slots.stage[env, action.slot] == int(Stage.DORMANT)
                assert legal == bool(empty and fits)
                refused += bool(empty and not fits)
    assert refused > 0
    count = sum(1 for action in engine.codec.actions if action.op is Op.GERMINATE)
    assert count == 2 * sum(map(len, OFFERS)) and Action(Op.GERMINATE, 1, 0, Blend.LINEAR) not in engine.codec.actions


def test_gates_heed_prospects_and_contributions(engine, life):
    """A seed leaves TRAINING on the clock if it is promising, and may become permanent if it contributes."""
    left = stayed = kept = 0
    for _, decided, after, composites in life:
        legal = engine.mask(after)
        for env, one in enumerate(composites):
            own = one.accuracy(engine.data)
            for slot in one.training:
                prospect = 100 * one.right(engine.data, {slot: 0.8}).mean().item() - own
                improvement = own - decided.slots.stage_accuracy[env, slot].item()
                promising = max(prospect, improvement) >= 1.0 - 1e-9
                opens = promising and bool(after.slots.healthy[env, slot])
                now = Stage(int(after.slots.stage[env, slot]))
                assert now is (Stage.BLENDING if opens else Stage.TRAINING)
                left, stayed = left + opens, stayed + (not opens)
            for slot in one.merged:
                if Stage(int(after.slots.stage[env, slot])) is not Stage.PROBATIONARY:
                    continue
                contribution = own - one.accuracy(engine.data, (slot,))
                banked, healthy = bool(after.slots.banked[env, slot]), bool(after.slots.healthy[env, slot])
                allowed = bool(legal[env, engine.codec.encode(Action(Op.FOSSILIZE, slot))])
                assert allowed == (contribution >= 1.0 - 1e-9 and banked and healthy)
                kept += allowed
    assert left and stayed and kept


def test_what_is_in_no_slot_has_no_number(engine, life):
    """Columns and statistics behind a seed's own stay 0; those of batch norm move in every active stage."""
    moved = 0
    for before, decided, after, _ in life:
        for number, slot in enumerate(engine.structure.slots):
            for env in range(E):
                kind, stage = int(decided.slots.blueprint[env, number]), Stage(int(decided.slots.stage[env, number]))
                if stage not in HELD:
                    continue
                own = slot.buffer_row(kind).size
                held = after.seed_buffers[env, slot.buffer_columns]
                assert not held[own:].any()
                if own and stage in ACTIVE and stage is not Stage.GERMINATED:
                    moved += not torch.equal(held, before.seed_buffers[env, slot.buffer_columns])
    assert moved
