"""A network as one chain of programs against its plain form in float64, and what an environment may depend on."""

import numpy as np
import pytest
import torch
from esper.kasmina.inference import lane_logits
from esper.kasmina.lanes import fork_lanes
from esper.kasmina.plan import make_plan, take_census
from esper.kasmina.programs import can_run, with_programs
from torch import Tensor
from torch.nn import functional as F

import esper
from esper.bench.scenes import Seeds, seeded
from esper.engine import Engine
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kernels.chain import Picked
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE
from esper.leyline.state import State
from esper.tolaria import data
from esper.tolaria.training import Gradients, compute_gradients, gather
from esper.utils import rng

pytestmark = pytest.mark.skipif(not can_run(torch.float32, torch.device("cpu")), reason="no C++ compiler")

ENVS, BATCH = 10, 21  # more than one pack of samples, and a last one that is not full
SEEDS = Seeds(tuple(range(len(CONV_BLUEPRINTS))), ACTIVE, tuple(esper.Config(num_envs=1, slots=()).blends))


def task(shape: tuple[int, int, int], blocks: int, slots: tuple[int, ...], pools: int | None = None) -> esper.Task:
    dataset = data.synthetic(shape, num_train=64, num_val=40)
    host = cnn_host(dataset.input_shape, dataset.num_classes, blocks, 4, pools)
    return esper.Task("t", host, CONV_BLUEPRINTS, dataset, {"slots": slots, "batch_size": BATCH, "steps_per_epoch": 2})


TASKS = {
    "one block, three slots": task((1, 8, 8), 1, (0, 0, 0)),
    "a slot after every block": task((3, 12, 10), 3, (0, 1, 2), 2),
    "no slots": task((2, 5, 7), 2, ()),
}


class Pair:
    """The same engine and state: programs in float32, and the plain form in float64."""

    def __init__(self, which: esper.Task, envs: int = ENVS) -> None:
        plain = esper.make(which, envs, compile=False)
        self.fast = Engine(with_programs(plain.network), plain.hypers, plain.data)
        self.exact = esper.make(which, envs, compile=False, precision=Precision.FLOAT64)
        assert self.fast.network.units.whole is not None
        self.state = seeded(plain, 0.8, SEEDS, 3)
        noise = 0.2 * rng.uniform(self.state.key, (self.state.buffers.shape[1],))
        self.state = self.state.replace(buffers=self.state.buffers + noise)


@pytest.fixture(scope="module", params=TASKS.values(), ids=TASKS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


def double(state: State) -> State:
    return state.apply(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)


def lesson(engine: Engine, state: State, batch: tuple[Tensor | Picked, Tensor]) -> tuple[Tensor, ...]:
    """Losses, accuracies, buffers and all gradients of a minibatch."""
    plan = make_plan(engine.network, state.slots)
    alphas = [state.slots.alpha[:, slot][rows.lanes] for slot, rows in enumerate(plan.slots)]
    work = gather(engine.network, state, plan)
    loss, accuracy, buffers, grads = compute_gradients(engine.network, plan, work, alphas, batch)
    assert isinstance(grads, Gradients)
    return loss, accuracy, torch.cat(buffers, dim=1), grads.host, *grads.seeds, *grads.gates


def batch_of(engine: Engine, envs: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """A minibatch of each environment's own."""
    count = engine.data.train_targets.shape[0]
    keys = rng.fold_in(rng.key(seed), torch.arange(envs))
    rows = rng.permutation(keys, count)[:, :BATCH]
    return engine.data.train_inputs[rows], engine.data.train_targets[rows]


def largest_gap(found: Tensor, wanted: Tensor) -> float:
    """Of all rows, the largest difference in units of the row's largest number."""
    if not wanted.numel():
        assert found.shape == wanted.shape
        return 0.0
    wide = wanted.flatten(1) if wanted.dim() > 1 else wanted.unsqueeze(1)
    return float(((found.double().reshape(wide.shape) - wide).abs().amax(1) / wide.abs().amax(1).clamp(min=1e-3)).max())


def test_training_equals_the_plain_form(pair: Pair) -> None:
    """Rounding of float32 is 6e-8; a gradient is some thousand of them deep in sums and norms."""
    inputs, targets = batch_of(pair.fast, ENVS)
    found = lesson(pair.fast, pair.state, (inputs, targets))
    wanted = lesson(pair.exact, double(pair.state), (inputs.double(), targets))
    assert [part.shape for part in found] == [part.shape for part in wanted]
    np.testing.assert_allclose(found[1].numpy(), wanted[1].numpy(), rtol=1e-6)
    for mine, exact in zip(found, wanted, strict=True):
        assert largest_gap(mine, exact) < 1e-4, largest_gap(mine, exact)


@pytest.mark.parametrize("every_coalition", [False, True])
def test_inference_equals_the_plain_form(pair: Pair, every_coalition: bool) -> None:
    logits = []
    for engine, state in ((pair.fast, pair.state), (pair.exact, double(pair.state))):
        lanes = fork_lanes(engine.network, take_census(state.slots), every_coalition, torch.device("cpu"))
        inputs = engine.data.val_inputs.expand(ENVS, *engine.data.val_inputs.shape)
        target = engine.hypers.alpha_target.expand(ENVS)
        logits.append(lane_logits(engine.network, state, lanes, target)(inputs))
    assert logits[0].shape == logits[1].shape
    assert logits[0].shape[0] > ENVS or not pair.state.slots.stage.shape[1]
    assert largest_gap(logits[0], logits[1]) < 1e-4


def test_an_environment_depends_on_nothing_else(pair: Pair) -> None:
    """Not on the others, their number and order, nor on the number of threads: to the bit."""
    inputs, targets = batch_of(pair.fast, ENVS)
    together = lesson(pair.fast, pair.state, (inputs, targets))[:4]
    few = esper.make(pair_task(pair), 4, compile=False)
    few = Engine(with_programs(few.network), few.hypers, few.data)
    chosen = torch.tensor([7, 2, 9, 0])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            alone = lesson(few, pair.state[chosen], (inputs[chosen], targets[chosen]))[:4]
            for part, whole in zip(alone, together, strict=True):
                assert torch.equal(part, whole[chosen])
    finally:
        torch.set_num_threads(threads)


def pair_task(pair: Pair) -> esper.Task:
    host = pair.fast.network.host
    return next(each for each in TASKS.values() if each.host.input_shape == host.input_shape)


def test_shared_minibatches_need_no_copy(pair: Pair) -> None:
    inputs, targets = (part[:1].expand(ENVS, *part.shape[1:]) for part in batch_of(pair.fast, ENVS))
    copied = lesson(pair.fast, pair.state, (inputs.contiguous(), targets.contiguous()))
    for mine, other in zip(lesson(pair.fast, pair.state, (inputs, targets)), copied, strict=True):
        assert torch.equal(mine, other)


def test_samples_picked_from_the_dataset_are_those_samples(pair: Pair) -> None:
    keys = rng.fold_in(rng.key(5), torch.arange(ENVS))
    rows = rng.permutation(keys, pair.fast.data.train_targets.shape[0])[:, 1 : BATCH + 1]
    for picks in (rows, rows[:1].expand(ENVS, -1)):
        inputs, targets = pair.fast.data.train_inputs[picks], pair.fast.data.train_targets[picks]
        copied = lesson(pair.fast, pair.state, (inputs, targets))
        picked = lesson(pair.fast, pair.state, (Picked(pair.fast.data.train_inputs, picks), targets))
        for mine, other in zip(picked, copied, strict=True):
            assert torch.equal(mine, other)


def test_a_dataset_that_is_a_view_of_channels_last_pictures() -> None:
    which = TASKS["a slot after every block"]
    pictures = which.data._replace(
        **{
            name: getattr(which.data, name).movedim(1, 3).contiguous().movedim(3, 1)
            for name in ("train_inputs", "val_inputs")
        }
    )
    assert not pictures.train_inputs.is_contiguous()
    ends = []
    for each in (which, which._replace(data=pictures)):
        plain = esper.make(each, 3, compile=False)
        engine = Engine(with_programs(plain.network), plain.hypers, plain.data)
        ends.append(engine.step(engine.init(0), torch.zeros(3, dtype=torch.int64))[0])
    assert torch.equal(ends[0].host.params, ends[1].host.params)
    assert torch.equal(ends[0].signals.val_loss, ends[1].signals.val_loss)


def test_not_a_number_stays_in_its_environment(pair: Pair) -> None:
    batch = batch_of(pair.fast, ENVS)
    clean = lesson(pair.fast, pair.state, batch)[:4]
    for poison in (torch.nan, torch.inf):
        params = pair.state.host.params.clone()
        params[4, 0] = poison
        state = pair.state.replace(host=pair.state.host.replace(params=params))
        found = lesson(pair.fast, state, batch)[:4]
        others = torch.arange(ENVS) != 4
        for mine, wanted in zip(found, clean, strict=True):
            assert torch.equal(mine[others], wanted[others])
        assert not torch.isfinite(found[0][4]) and not torch.isfinite(found[3][4]).all()


def test_loss_of_huge_and_equal_logits() -> None:
    """Closed form at the edges: a head whose bias alone decides."""
    pair = Pair(TASKS["no slots"], 3)
    params = pair.state.host.params.clone()
    classes = pair.fast.network.host.num_outputs
    head = classes * (pair.fast.network.host.blocks[-1].params[0].shape[1] + 1)
    params[:, -head:] = 0
    params[1, -classes] = 1e4
    params[2, -classes:] = -1e4
    state = pair.state.replace(host=pair.state.host.replace(params=params))
    inputs, targets = batch_of(pair.fast, 3)
    loss, accuracy, *_ = lesson(pair.fast, state, (inputs, targets))
    logits = params[:, None, -classes:].expand(3, BATCH, classes)
    wanted = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="none").reshape(3, BATCH)
    torch.testing.assert_close(loss.double(), wanted.mean(1), rtol=1e-6, atol=1e-6)
    hits = (logits.argmax(-1) == targets).float().mean(1)
    torch.testing.assert_close(accuracy, 100 * hits, rtol=1e-6, atol=1e-4)


def test_what_cannot_be_a_chain_stays_in_parts() -> None:
    """A blueprint that cannot be written down: its slot goes blueprint by blueprint, everything else by program."""
    odd = CONV_BLUEPRINTS[3]._replace(name="odd", apply=lambda params, x: x + 0.1 * torch.tanh(x))
    which = TASKS["one block, three slots"]._replace(blueprints=(*CONV_BLUEPRINTS, odd))
    plain = esper.make(which, 6, compile=False)
    fast = Engine(with_programs(plain.network), plain.hypers, plain.data)
    units = fast.network.units
    assert units.whole is None and units.slots == (None,) * 3
    assert [new is old for new, old in zip(units.seeds[0], plain.network.units.seeds[0], strict=True)] == [
        False
    ] * 7 + [True]
    state = seeded(plain, 1.0, SEEDS._replace(kinds=tuple(range(8))), 3)
    batch = batch_of(plain, 6)
    exact = esper.make(which, 6, compile=False, precision=Precision.FLOAT64)
    for mine, wanted in zip(
        lesson(fast, state, batch), lesson(exact, double(state), (batch[0].double(), batch[1])), strict=True
    ):
        assert largest_gap(mine, wanted) < 1e-4
