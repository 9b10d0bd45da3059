"""The graph policy: weights that fit every task, and what it says against its definition in plain Python."""

import math
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F

import esper
from esper.leyline.actions import NONE, Blend, Op, build_codec
from esper.runtime.interrupt import torch_draws_from
from esper.runtime.tasks import named
from esper.simic.advantages import values_of
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.graph_network import ROUNDS, SLOT_COLUMNS, WHOLE_COLUMNS
from esper.tamiyo.graph_policy import build_graph_policies
from esper.tamiyo.host_graph import POINT_FEATURES, SEED_FEATURES, HostGraph, flows
from esper.tamiyo.interface import Interface, common, from_table, meanings_of, to_table
from esper.tamiyo.tiles import TILE, Tiled, scored
from esper.utils import rng

SIZES = ActorCriticConfig(features=10, lstm=6, head=7)
NAMES = ("synthetic", "synthetic_tokens", "digits_deep")
ENVS = 4


@pytest.fixture(scope="module")
def engines():
    return {name: esper.make(named(name), ENVS, steps_per_epoch=1, horizon=5, batch_size=8) for name in NAMES}


@pytest.fixture(scope="module")
def bypassed(engines):
    """Slots of both kinds, and blocks between which nothing can grow but beside them all."""
    return engines["digits_deep"]


def stirred(policies):
    """The same with parameters away from their start, where the heads say next to nothing."""
    with torch.no_grad():
        for number, parameter in enumerate(policies[0].parameters()):
            parameter.add_(rng.uniform(rng.fold_in(rng.key(3), number), tuple(parameter.shape), -0.3, 0.3))
    return policies


def build(*tasks, seed=0, sizes=SIZES):
    return stirred(build_graph_policies(sizes, tasks, seed))


def inputs(task, rows, seed=0, dtype=torch.float32):
    """Any observation, but for the flags that say which blueprint a slot holds, and any mask with WAIT."""
    observation = rng.uniform(rng.key(seed), (rows, len(task.columns)), -1.0, 1.0, dtype=dtype)
    kinds = len(task.codec.blueprint_names)
    for slot in {name.split(".")[0] for name in task.columns if ".blueprint=" in name}:
        places = [place for place, name in enumerate(task.columns) if name.startswith(f"{slot}.blueprint=")]
        held = rng.bits(rng.fold_in(rng.key(seed), len(slot) + int(slot[4:])), (rows,)) % (kinds + 1)
        observation[:, places] = F.one_hot(held, kinds + 1)[:, 1:].to(dtype)
    mask = rng.uniform(rng.key(seed + 1), (rows, task.codec.size)) < 0.5
    mask[:, 0] = True
    memory = rng.normal(rng.key(seed + 2), (2, rows, 1, SIZES.lstm), dtype)
    given = {"observation": observation, "action_mask": mask, "is_init": torch.zeros(rows, 1, dtype=torch.bool)}
    given |= {"recurrent_state_h": torch.tanh(memory[0]), "recurrent_state_c": memory[1]}
    return TensorDict(given, [rows])


def said(policy, given):
    return scored(lambda part: policy.get_value_head()(policy.get_policy_operator()(part)))(given.clone())


def test_the_graph_of_a_structure_is_what_it_is_made_of(bypassed):
    structure, graph = bypassed.structure, bypassed.interface.graph()
    host = structure.host
    assert graph.points.shape == (len(host.blocks) + 1, len(POINT_FEATURES)) and bool((graph.points[0, :3] == 0).all())
    depth, flops, params, *kinds = graph.points.T
    assert depth.tolist() == pytest.approx([number / len(host.blocks) for number in range(len(host.blocks) + 1)])
    assert float(flops.sum()) == pytest.approx(1) and float(params.sum()) == pytest.approx(1)
    assert torch.stack(kinds).sum(0)[:-1].tolist() == [1.0] * len(host.blocks) and not any(kind[-1] for kind in kinds)
    assert graph.slots.tolist() == [[slot.source, slot.target] for slot in structure.slots]
    assert any(slot.is_bypass for slot in structure.slots) and not all(slot.is_bypass for slot in structure.slots)
    for number, slot in enumerate(structure.slots):
        for kind, blueprint in enumerate(structure.blueprints):
            size, flops, tensors, bypass, moves = graph.seeds[number, kind].tolist()
            if kind not in slot.offers:
                assert size == flops == tensors == bypass == moves == 0
                continue
            assert size == pytest.approx(0.25 * math.log(1 + int(structure.sizes[number, kind]) / host.num_params))
            own = blueprint.flops(slot.reads, slot.acts) / sum(block.flops for block in host.blocks)
            assert flops == pytest.approx(0.25 * math.log(1 + own))
            assert tensors == pytest.approx(0.25 * math.log(1 + len(blueprint.params(slot.reads, slot.acts))))
            assert (bypass, moves) == (blueprint.is_bypass, blueprint.identity_bound > 0)


def test_the_weights_are_of_no_task(engines):
    """Names, shapes and first values alike, whatever there is to grow; one network in several tasks is one."""
    tasks = [engine.interface for engine in engines.values()]
    assert len({len(task.codec.blueprint_names) for task in tasks}) > 1
    assert len({task.graph().slots.shape[0] for task in tasks}) > 1
    assert len({task.graph().points.shape[0] for task in tasks}) > 1
    alone = [build_graph_policies(SIZES, [task], 5)[0].state_dict() for task in tasks]
    together = [policy.state_dict() for policy in build_graph_policies(SIZES, tasks, 5)]
    for state in (*alone, *together):
        assert state.keys() == alone[0].keys()
        assert all(torch.equal(value, alone[0][name]) for name, value in state.items())
    assert len({state["module.0.module.0.module.encoder.whole.weight"].data_ptr() for state in together}) == 1
    other = build_graph_policies(SIZES, tasks, 6)[0].state_dict()
    weights = [name for name, value in other.items() if value.dim() == 2]
    assert len(weights) > 15 and not any(torch.equal(other[name], alone[0][name]) for name in weights)


def affine(layer, x):
    rows = layer.weight.tolist()
    bias = [0.0] * len(rows) if layer.bias is None else layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(rows, bias, strict=True)]


def normed(layer, x):
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + layer.eps)
    scaled = zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [(v - mean) / spread * w + b for v, w, b in scaled]


def relu(x):
    return [max(v, 0.0) for v in x]


def total(*parts):
    return [sum(values) for values in zip(*parts, strict=True)]


def mean_of(nodes, chosen):
    return [sum(nodes[c][i] for c in chosen) / len(chosen) if chosen else 0.0 for i in range(len(nodes[0]))]


def encoded(encoder, engine, row):
    """The encoder in lists and dictionaries: what the memory sees, and what every slot is."""
    structure, task = engine.structure, engine.interface
    graph, seen = task.graph(), dict(zip(task.columns, row.tolist(), strict=True))
    whole = affine(encoder.whole, [seen.get(name, 0.0) for name in WHOLE_COLUMNS])
    points = [total(affine(encoder.point, point), whole) for point in graph.points.tolist()]
    before, after = {point: [] for point in range(len(points))}, {point: [] for point in range(len(points))}
    for block in range(len(structure.host.blocks)):
        before[block + 1].append(block)
        after[block].append(block + 1)
    slots = []
    for number, slot in enumerate(structure.slots):
        own = [seen[f"slot{number}.{name}"] for name in SLOT_COLUMNS]
        held = [k for k, name in enumerate(task.codec.blueprint_names) if seen[f"slot{number}.blueprint={name}"] == 1]
        kind = graph.seeds[number, held[0]].tolist() if held else [0.0] * len(SEED_FEATURES)
        slots.append(total(affine(encoder.slot, own + kind), whole))
        node = len(points) + number
        before[node], after[node] = [slot.source], [slot.target]
        after[slot.source].append(node)
        before[slot.target].append(node)
    nodes = [relu(normed(encoder.norm, node)) for node in (*points, *slots)]
    for messages in encoder.rounds:
        heard = [
            total(
                affine(messages.own, node),
                affine(messages.before, mean_of(nodes, before[place])),
                affine(messages.after, mean_of(nodes, after[place])),
            )
            for place, node in enumerate(nodes)
        ]
        nodes = [total(node, relu(normed(messages.norm, new))) for node, new in zip(nodes, heard, strict=True)]
    pooled = whole + mean_of(nodes, range(len(nodes))) + [max(column) for column in zip(*nodes, strict=True)]
    return relu(normed(encoder.pool_norm, affine(encoder.pool, pooled))), nodes[len(points) :]


def test_messages_are_those_of_their_definition(bypassed):
    (policy,) = build(bypassed.interface)
    seeing = policy.double().module[0].module[0].module
    given = inputs(bypassed.interface, 3, dtype=torch.float64)["observation"]
    assert len(seeing.encoder.rounds) == ROUNDS == 2
    with torch.no_grad():
        features, slots = seeing(given)
    for row in range(3):
        expected, rows = encoded(seeing.encoder, bypassed, given[row])
        assert torch.allclose(features[row], torch.tensor(expected, dtype=torch.float64), atol=1e-6)
        assert torch.allclose(slots[row], torch.tensor(rows, dtype=torch.float64), atol=1e-6)


def test_scores_are_those_of_their_definition(bypassed):
    """log p(action) = log p(op | legal ops) + log p(arguments | op), the arguments' scores added up one by one."""
    task = bypassed.interface
    (policy,) = build(task)
    deciding = policy.double().module[1].module[0].module
    heads, graph = deciding.heads, task.graph()
    slots = rng.normal(rng.key(0), (graph.slots.shape[0], SIZES.features), torch.float64)
    hidden, mask = rng.normal(rng.key(1), (SIZES.lstm,), torch.float64), inputs(task, 1)["action_mask"][0]
    with torch.no_grad():
        found = deciding(slots, hidden, mask).exp()
        op, blend = heads.op(hidden).tolist(), heads.blend(hidden).tolist()
    memory = hidden.tolist()

    def score(action):
        if action.slot == NONE:
            return 0.0
        node = slots[action.slot].tolist()
        first, second = heads.slot.parts
        value = affine(heads.slot.out, relu(total(affine(first, memory), affine(second, node))))[action.op]
        if action.blueprint != NONE:
            parts = (memory, node, graph.seeds[action.slot, action.blueprint].tolist())
            given = [affine(layer, part) for layer, part in zip(heads.seed.parts, parts, strict=True)]
            value += affine(heads.seed.out, relu(total(*given)))[action.op == Op.CHANGE_BLUEPRINT]
            value += blend[action.blend]
        return value

    legal = [index for index in range(task.codec.size) if mask[index]]
    actions = task.codec.actions
    ops = {actions[index].op for index in legal}
    for index in range(task.codec.size):
        if not mask[index]:
            assert found[index] == 0
            continue
        same = [math.exp(score(actions[other])) for other in legal if actions[other].op == actions[index].op]
        chance = math.exp(op[actions[index].op]) / sum(math.exp(op[each]) for each in ops)
        assert float(found[index]) == pytest.approx(chance * math.exp(score(actions[index])) / sum(same), rel=1e-6)


def reordered(engine, slots, kinds):
    """The same task with slots and blueprints in another order: the interface, and the place of every column."""
    task, graph = engine.interface, engine.interface.graph()
    names = [task.codec.blueprint_names[kind] for kind in kinds]
    offers = tuple(tuple(kinds.index(kind) for kind in engine.structure.slots[slot].offers) for slot in slots)
    codec = build_codec(tuple(tuple(sorted(offer)) for offer in offers), engine.config.blends, tuple(names))
    shuffled = HostGraph(graph.points, graph.slots[slots], graph.seeds[slots][:, kinds])

    def own(name):
        slot, dot, rest = name.partition(".")
        return f"slot{slots[int(slot[4:])]}{dot}{rest}" if dot and slot.startswith("slot") else name

    columns = tuple(reversed(task.columns))
    return Interface(columns, codec, lambda: shuffled), [task.columns.index(own(name)) for name in columns]


def test_slots_and_blueprints_in_another_order_are_the_same_task(bypassed):
    task, count = bypassed.interface, bypassed.config.num_slots
    slots = [*range(1, count), 0]
    kinds = list(reversed(range(len(task.codec.blueprint_names))))
    other, columns = reordered(bypassed, slots, kinds)
    policies = build(task, other)
    for policy in policies:
        policy.double()
    given = inputs(task, 50, dtype=torch.float64)
    meant = {(action._replace(slot=action.slot), name): i for i, (action, name) in enumerate(meanings_of(task.codec))}
    places = [
        meant[action._replace(slot=NONE if action.slot == NONE else slots[action.slot]), name]
        for action, name in meanings_of(other.codec)
    ]
    assert sorted(places) == list(range(task.codec.size)) and places != sorted(places)
    there = given.clone().update({"observation": given["observation"][:, columns]})
    there["action_mask"] = given["action_mask"][:, places]
    found, expected = said(policies[1], there), said(policies[0], given)
    assert torch.allclose(found["logits"].exp(), expected["logits"].exp()[:, places], rtol=0, atol=1e-12)
    assert torch.allclose(found["state_value"], expected["state_value"], rtol=0, atol=1e-12)
    assert not torch.allclose(expected["logits"].exp()[:, places], expected["logits"].exp(), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_illegal_has_no_chance_and_what_is_legal_all_of_it(engines, name):
    (policy,) = build(engines[name].interface)
    given = inputs(engines[name].interface, 200)
    given["action_mask"][::5, 1:] = False
    chance, mask = said(policy, given)["logits"].exp(), given["action_mask"]
    assert bool((chance[~mask] == 0).all()) and bool((chance[mask] > 0).all())
    assert torch.allclose(chance.sum(1), torch.ones(200), atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_a_broken_observation_stays_in_its_row(engines, bad):
    task = engines["synthetic"].interface
    (policy,) = build(task)
    good, broken = inputs(task, 5), inputs(task, 5)
    broken["observation"][2] = bad
    good, broken = said(policy, good), said(policy, broken)
    for key in ("logits", "state_value", ("next", "recurrent_state_h"), ("next", "recurrent_state_c")):
        assert broken[key].isfinite().all()
        assert torch.equal(broken[key][[0, 1, 3, 4]], good[key][[0, 1, 3, 4]])


@pytest.mark.parametrize("name", NAMES)
def test_by_tiles_a_decision_is_its_environments_own(engines, name):
    """To the bit: alone, among seven and in the midst of more than a tile."""
    task = engines[name].interface
    (policy,) = build(task, sizes=ActorCriticConfig())
    given = inputs(task, TILE + 9)
    memory = rng.normal(rng.key(8), (2, TILE + 9, 1, ActorCriticConfig().lstm))
    given.update({"recurrent_state_h": memory[0], "recurrent_state_c": memory[1]})
    tiled = Tiled(partial(said, policy))
    whole = tiled(given)
    for rows in ([5], [70, 3, 5, 9, 11, 12, 64]):
        part = tiled(given[rows])
        for key in ("logits", "state_value", ("next", "recurrent_state_h"), ("next", "recurrent_state_c")):
            assert torch.equal(part[key], whole[key][rows]), key


def test_a_sequence_is_its_steps_and_everything_learns(engines):
    """Values and chances along an episode are those it was played by; every parameter has a gradient, and moves."""
    names = ("synthetic", "synthetic_tokens")
    tasks = [engines[name].interface for name in names]
    policies = build(*tasks)
    learner = Learner(policies[0], PPOConfig(epochs=1, minibatches=1), rounds=3, views=policies)
    batches = []
    for name, policy in zip(names, policies, strict=True):
        collector = make_collector(EsperEnv(engines[name]), policy)
        with torch_draws_from(5):
            batch = next(iter(collector))
        batches.append(batch)
        collector.shutdown()
        values, operator = values_of(policy, batch), policy.get_value_operator()
        memory = {key: torch.zeros(ENVS, 1, SIZES.lstm) for key in ("recurrent_state_h", "recurrent_state_c")}
        for t in range(6):
            source = batch[:, t] if t < 5 else batch[:, 4]["next"]
            given = source.select("observation", "action_mask").update(memory)
            with torch.no_grad():
                out = operator(given.set("is_init", torch.zeros(ENVS, 1, dtype=torch.bool)))
            torch.testing.assert_close(out["state_value"], values[:, t], rtol=1e-5, atol=1e-5)
            memory = {key: out["next", key] for key in memory}
        assert float(memory["recurrent_state_h"].abs().sum()) > 0
    before = {name: value.clone() for name, value in policies[0].state_dict().items()}
    told = learner.update(batches)
    assert told["skipped"] == 0 and told["clip_fraction"] == 0 and abs(told["kl"]) < 1e-5, "the first ratio is 1"
    for name, parameter in policies[1].named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and bool(parameter.grad.any()), name
        assert not torch.equal(parameter, before[name]), name


def test_a_task_without_slots_and_interfaces_without_a_graph(engines):
    task = engines["synthetic"].interface
    points, no_slots = task.graph().points, torch.zeros(0, 2, dtype=torch.int64)
    nothing = HostGraph(points, no_slots, torch.zeros(0, 1, len(SEED_FEATURES)))
    bare = Interface(WHOLE_COLUMNS, build_codec((), (Blend.LINEAR,), ("a",)), lambda: nothing)
    (policy,) = build(bare)
    found = said(policy, inputs(bare, 3))
    assert bool((found["logits"] == 0).all()) and bool(found["state_value"].isfinite().all())
    assert flows(nothing).sum() == len(nothing.points) - 1
    for other in (common([task, engines["digits_deep"].interface]), from_table(to_table(task))):
        with pytest.raises(ValueError, match="graph policy: an interface without a graph; expected an engine's own"):
            build_graph_policies(SIZES, [other], 0)
