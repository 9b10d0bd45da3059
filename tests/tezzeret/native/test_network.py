"""The native network against the definition in float64, and what an environment may depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tezzeret_states import Pair, batch_of, double, evaluated, largest_gap, lesson, mixed_state, plain, plan_of
from torch.nn import functional as F

import esper
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.counterfactuals import AS_IS, Counterfactuals, coalitions, single_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.learners import learners_of
from esper.tezzeret.batches import Batch, Batches
from esper.tezzeret.native.library import library
from esper.tolaria.synthetic import synthetic

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

ENVS, BATCH = 10, 21  # more than one pack of samples, and a last one that is not full


def task(shape: tuple[int, int, int], blocks: int, slots: tuple[int, ...], base: int = 4, pools: int = 0) -> esper.Task:
    dataset = synthetic(shape, num_train=64, num_val=40)
    host = cnn_host(shape, dataset.num_classes, blocks, base, pools)
    return esper.Task("t", host, CONV_BLUEPRINTS, dataset, {"slots": slots, "batch_size": BATCH, "steps_per_epoch": 2})


TASKS = {
    "one block, three slots": task((1, 8, 8), 1, (0, 0, 0)),
    "a slot after every block": task((3, 12, 10), 3, (0, 1, 2), pools=2),
    "no slots": task((2, 5, 7), 2, ()),
}
SITES = {
    "x".join(map(str, shape)): task((1, *shape[1:]), 1, (0, 0, 0), base=shape[0])
    for shape in ((1, 4, 4), (6, 5, 3), (16, 1, 1), (24, 2, 2))
}


@pytest.fixture(scope="module", params=TASKS.values(), ids=TASKS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param, ENVS)


def test_training_equals_the_definition(pair: Pair) -> None:
    pair.assert_near(batch_of(pair.fast, BATCH))


@pytest.mark.parametrize("batch", [1, 16, 18])
@pytest.mark.parametrize("site", SITES)
def test_every_blueprint_at_sites_of_all_sizes(site: str, batch: int) -> None:
    """Eighty-four seeds of seven kinds, gates among them, in every stage; and batch sizes around a pack."""
    pair = Pair(SITES[site], 28)
    slots = pair.state.slots
    assert set(slots.blueprint.flatten().tolist()) == set(range(-1, len(CONV_BLUEPRINTS)))
    pair.assert_near(batch_of(pair.fast, batch), 3e-4)


@pytest.mark.parametrize("envs", [1, 12])
def test_a_step_equals_that_of_the_definition(small_task: esper.Task, envs: int) -> None:
    pair, wait = Pair(small_task, envs, seed=4), torch.zeros(envs, dtype=torch.int64)
    state, event = pair.fast.step(pair.state, wait)
    wanted, exact = pair.exact.step(double(pair.state), wait)
    for found, true in ((event.epoch.loss, exact.epoch.loss), (event.evaluation.loss, exact.evaluation.loss)):
        assert largest_gap(found, true) < 1e-4
    for part in ("host", "seeds"):
        for name in ("params", "moments"):
            assert largest_gap(state.get(part).get(name), wanted.get(part).get(name)) < 1e-4
        assert torch.equal(state.get(part).steps, wanted.get(part).steps)
    assert largest_gap(state.buffers, wanted.buffers) < 1e-4


def test_forward_is_that_of_the_definition(pair: Pair) -> None:
    batch, state = batch_of(pair.fast, BATCH), double(pair.state)
    outputs, learners = pair.fast.backend.forward(
        plan_of(pair.fast, pair.state), learners_of(pair.state), pair.state.slots.alpha, batch
    )
    wide = batch._replace(inputs=batch.inputs.double())
    wanted, exact = pair.exact.backend.forward(plan_of(pair.exact, state), learners_of(state), state.slots.alpha, wide)
    assert largest_gap(outputs, wanted) < 1e-4 and largest_gap(learners.buffers, exact.buffers) < 1e-4


# Evaluation


def assert_same_answers(pair: Pair, wanted: Counterfactuals) -> None:
    found, outputs = evaluated(pair.fast, pair.state, wanted)
    exact, true = evaluated(pair.exact, double(pair.state), wanted)
    assert outputs.shape == true.shape and outputs.shape[0] == ENVS + wanted.env.size
    assert largest_gap(outputs, true) < 1e-4
    torch.testing.assert_close(found.losses.double(), exact.losses, rtol=1e-4, atol=1e-4)
    top = true.topk(2, dim=-1).values
    clear = top[..., 0] - top[..., 1] > 1e-3
    assert clear.double().mean() > 0.9 and torch.equal(found.scores[clear].double(), exact.scores[clear])
    torch.testing.assert_close(found.class_hits.sum(1), found.scores[:ENVS].sum(1))


def test_inference_equals_the_definition(pair: Pair) -> None:
    table = take_table(pair.state.slots)
    singles, (every, off) = single_changes(table), coalitions(table)
    assert off.size == every.env.size and (singles.env.size > ENVS or not pair.task.settings["slots"])
    for wanted in (singles, every):
        assert_same_answers(pair, wanted)


@given(st.lists(st.tuples(st.integers(0, ENVS - 1), st.lists(st.integers(0, 2), min_size=3, max_size=3)), max_size=30))
@settings(max_examples=15)
def test_any_list_of_counterfactuals(rows: list[tuple[int, list[int]]]) -> None:
    """In any order, repeated, changing nothing, or slots that hold nothing."""
    pair = PAIRS.setdefault("deep", Pair(TASKS["a slot after every block"], ENVS))
    env = np.array([row[0] for row in rows], dtype=np.int64)
    change = np.array([row[1] for row in rows], dtype=np.int64).reshape(len(rows), 3)
    assert_same_answers(pair, Counterfactuals(env, change))


PAIRS: dict[str, Pair] = {}


def test_no_change_changes_nothing(pair: Pair) -> None:
    slots = pair.fast.config.num_slots
    same = Counterfactuals(np.arange(ENVS)[::-1].copy(), np.full((ENVS, slots), AS_IS))
    scores, outputs = evaluated(pair.fast, pair.state, same)
    assert torch.equal(outputs[ENVS:], outputs[:ENVS].flip(0))
    assert torch.equal(scores.scores[ENVS:], scores.scores[:ENVS].flip(0))


# Independence


def test_an_environment_depends_on_nothing_else(pair: Pair) -> None:
    """Not on the others, their number and order, nor on the number of threads: to the bit."""
    batch, chosen = batch_of(pair.fast, BATCH), [7, 2, 9, 0]
    together = lesson(pair.fast, pair.state, batch)
    table = take_table(pair.state.slots)
    answers, _ = evaluated(pair.fast, pair.state, single_changes(table))
    few, state = esper.make(pair.task, 4, backend="native"), pair.state[torch.tensor(chosen)]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            alone = lesson(few, state, batch._replace(inputs=batch.inputs[chosen], targets=batch.targets[chosen]))
            for part, whole in zip(alone.rows(), together.rows(), strict=True):
                assert torch.equal(part, whole[chosen])
            scores, _ = evaluated(few, state, single_changes(take_table(state.slots)))
            assert torch.equal(scores.losses, answers.losses[chosen])
            assert torch.equal(scores.scores[:4], answers.scores[chosen])
    finally:
        torch.set_num_threads(threads)


def test_shared_minibatches_need_no_copy(pair: Pair) -> None:
    shared = batch_of(pair.fast, BATCH)
    inputs, targets = (part[:1].expand(ENVS, *part.shape[1:]) for part in shared[:2])
    copied = shared._replace(inputs=inputs.contiguous(), targets=targets.contiguous())
    found = lesson(pair.fast, pair.state, shared._replace(inputs=inputs, targets=targets))
    for mine, other in zip(found.rows(), lesson(pair.fast, pair.state, copied).rows(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("shared", [False, True])
def test_an_epoch_is_its_minibatches_one_after_the_other(pair: Pair, shared: bool) -> None:
    """Samples picked from the dataset are those samples: to the bit."""
    engine, state, hypers = pair.fast, pair.state, plain(pair.fast.hypers)
    order = torch.arange(ENVS * 2 * BATCH).reshape(ENVS, 2, BATCH) * 7 % engine.data.train.targets.shape[0]
    order = order[0] if shared else order
    inputs, targets = engine.data.train.inputs, engine.data.train.targets
    batches = Batches(inputs, targets, order, state.key, state.epoch)
    plan, alphas = plan_of(engine, state), state.slots.alpha
    found, epoch = engine.backend.epoch(hypers, plan, learners_of(state), alphas, batches)
    learners, losses = learners_of(state), []
    for step in range(2):
        picks = order[..., step, :].expand(ENVS, BATCH)
        batch = Batch(inputs[picks], targets[picks])
        learners, seen = engine.backend.minibatch_step(hypers, plan, learners, alphas, batch)
        losses.append(seen.loss)
    leaves = [(*each.host, each.buffers, *each.seeds) for each in (found, learners)]
    assert all(torch.equal(mine, other) for mine, other in zip(*leaves, strict=True))
    torch.testing.assert_close(epoch.loss, sum(losses) / 2)


def test_a_dataset_that_is_a_view_of_channels_last_pictures() -> None:
    which = TASKS["a slot after every block"]
    turned = {
        name: part._replace(inputs=part.inputs.movedim(1, 3).contiguous().movedim(3, 1))
        for name, part in which.data.parts.items()
    }
    pictures = which.data._replace(**turned)
    assert not pictures.train.inputs.is_contiguous()
    ends = []
    for each in (which, which._replace(data=pictures)):
        engine = esper.make(each, 3, backend="native")
        ends.append(engine.step(engine.init(0), torch.zeros(3, dtype=torch.int64))[0])
    assert torch.equal(ends[0].host.params, ends[1].host.params)
    assert torch.equal(ends[0].signals.val_loss, ends[1].signals.val_loss)


def test_not_a_number_stays_in_its_environment(pair: Pair) -> None:
    batch = batch_of(pair.fast, BATCH)
    clean = lesson(pair.fast, pair.state, batch)
    for poison in (torch.nan, torch.inf):
        params = pair.state.host.params.clone()
        params[4, 0] = poison
        state = pair.state.replace(host=pair.state.host.replace(params=params))
        found = lesson(pair.fast, state, batch)
        others = torch.arange(ENVS) != 4
        for mine, wanted in zip(found.rows(), clean.rows(), strict=True):
            assert torch.equal(mine[others], wanted[others])
        assert not torch.isfinite(found.loss[4]) and not torch.isfinite(found.host[4]).all()


def test_loss_of_huge_and_equal_logits() -> None:
    """Closed form at the edges: a head whose bias alone decides."""
    engine = esper.make(TASKS["no slots"], 3, backend="native")
    state, host = mixed_state(engine, 3), engine.structure.host
    params, classes = state.host.params.clone(), host.num_outputs
    params[:, -host.blocks[-1].layout.size :] = 0
    params[1, -classes] = 1e4
    params[2, -classes:] = -1e4
    state, batch = state.replace(host=state.host.replace(params=params)), batch_of(engine, BATCH)
    found = lesson(engine, state, batch)
    logits = params[:, None, -classes:].expand(3, BATCH, classes)
    wanted = F.cross_entropy(logits.double().flatten(0, 1), batch.targets.flatten(), reduction="none").reshape(3, BATCH)
    torch.testing.assert_close(found.loss.double(), wanted.mean(1), rtol=1e-6, atol=1e-6)
    hits = (logits.argmax(-1) == batch.targets).float().mean(1)
    torch.testing.assert_close(found.accuracy, 100 * hits, rtol=1e-6, atol=1e-4)


def test_inputs_keep_their_bits(pair: Pair) -> None:
    before = [leaf.clone() for leaf in pair.state.values(True, True)]
    batch = batch_of(pair.fast, BATCH)
    lesson(pair.fast, pair.state, batch)
    evaluated(pair.fast, pair.state, single_changes(take_table(pair.state.slots)))
    assert all(torch.equal(old, new) for old, new in zip(before, pair.state.values(True, True), strict=True))
