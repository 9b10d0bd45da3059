"""bench.frontier: FLOPs against torch's counter, composites against torch.nn, choices and intervals by hand."""

import json
import math
import statistics
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import esper
from esper.kasmina.bypass_blueprints import CONV4X2
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import BOTTLENECK
from esper.kasmina.slot_table import take_table
from esper.leyline.config import Isolation, Precision
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage
from esper.runtime.tasks import synthetic
from esper.tezzeret import eager
from esper.tezzeret.batches import batch_at
from esper.tolaria.training import draw_batches

NAMES = ("flops", "contenders", "play", "prune", "report", "chart", "gromo")


@pytest.fixture(scope="module")
def bench(bench_module):
    """The modules by their short names."""
    modules = {name: bench_module(f"frontier_{name}") for name in NAMES}
    return SimpleNamespace(**modules, main=bench_module("frontier"))


@pytest.fixture(autouse=True)
def _modules_draw_elsewhere():
    """torch.nn draws its initial values from the global generator, which nothing may leave changed."""
    with torch.random.fork_rng(devices=[]):
        yield


def conv_block(into, out):
    return [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((-2, -1))


def plain(widths, classes):
    """The convolutional host, or a bypass, in torch.nn."""
    pairs = zip((1, *widths), widths, strict=False)
    layers = [layer for into, out in pairs for layer in conv_block(into, out)]
    return nn.Sequential(*layers, Mean(), nn.Linear(widths[-1], classes))


def counted(model, x):
    """FLOPs of a forward pass, and of forward and backward."""
    with FlopCounterMode(display=False) as forward:
        y = model(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


def engine_of(host, kinds, slots, isolation=Isolation.OBJECTIVE, **settings):
    task = synthetic()._replace(host=host, blueprints=kinds, settings={"steps_per_epoch": 2, "batch_size": 16})
    return esper.make(task, 2, backend="eager", slots=slots, isolation=isolation, **settings)


def test_a_joint_network_costs_what_torch_counts(bench):
    shape, classes = (1, 8, 8), 10
    engine = engine_of(cnn_host(shape, classes, 2, 4), (CONV4X2,), ("input:logits",))
    batch = 3
    host, bypass = plain((4, 8), classes), plain((4, 8), classes)
    x = torch.ones(batch, *shape, requires_grad=True)  # so that first layers have the gradient they are charged for
    forward, both = counted(lambda x: host(x) + bypass(x), x)
    merged = ((int(Stage.FOSSILIZED), 0),)
    ahead, back, objective, validation = bench.flops.row_flops(engine.structure, merged)
    assert (batch * ahead, batch * (ahead + back), objective) == (forward, both, 0)
    assert validation == ahead  # nothing lies behind the logits
    static, *_ = bench.flops.row_flops(engine.structure, ((int(Stage.DORMANT), -1),))
    assert batch * static == counted(host, x.detach().requires_grad_())[0]


def test_an_objective_pass_costs_what_torch_counts(bench):
    shape, classes = (1, 8, 8), 10
    host = cnn_host(shape, classes, 2, 4)
    engine = engine_of(host, (BOTTLENECK,), (0,))
    behind = nn.Sequential(*conv_block(4, 8), Mean(), nn.Linear(8, classes)).requires_grad_(False)
    forward, both = counted(behind, torch.ones(5, 4, 4, 4, requires_grad=True))
    training = ((int(Stage.TRAINING), 0),)
    _, _, objective, validation = bench.flops.row_flops(engine.structure, training)
    assert 5 * objective == both
    own = bench.flops.seed_flops(engine.structure, 0, 0)
    assert validation == bench.flops.host_flops(engine.structure) + own + forward / 5
    through = engine_of(host, (BOTTLENECK,), (0,), Isolation.STRAIGHT_THROUGH)
    assert bench.flops.row_flops(through.structure, training)[2] == 0


def test_a_run_costs_the_sum_of_its_stages(bench):
    """Beside the stages that the engine reports before its clock."""
    host = cnn_host((1, 8, 8), 10, 1, 4)
    settings = {"steps_per_epoch": 2, "batch_size": 16, "min_training_epochs": 1, "blend_epochs": 1}
    task = synthetic()._replace(settings=settings | {"min_blending_epochs": 1})
    contender = bench.contenders.grown(task, host, CONV4X2)
    study = bench.play.Study(task, 1, 7, (0.1,), 1, "eager")
    engine = bench.play.make_engine(contender, study, study.rates)
    policy, state = contender.policy(engine.codec), bench.play.init(engine, study)
    _, curve, spent = bench.play.advance(engine, state, policy, study.epochs)
    of_host = 2 * (64 * 9 * 4 + 4 * 10)
    of_seed = 2 * (64 * 9 * 4 + 16 * 9 * 4 * 8 + 8 * 10)
    active = total = 0
    for number in range(study.epochs):
        seen = SimpleNamespace(mask=engine.mask(state))
        state, event = engine.step(state, policy.act(None, seen)[1].action)
        stage = int(event.life.before)
        active += stage in (Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED)
        total += 1
        assert float(curve[number]) == pytest.approx(float(state.signals.val_accuracy))
    assert int(state.slots.stage) == Stage.FOSSILIZED
    assert float(spent.training) == 3 * 2 * 16 * (total * of_host + active * of_seed)
    params = bench.play.judged(engine, state, curve, spent).params
    assert float(params) == sum(p.numel() for p in [*plain((4,), 10).parameters(), *plain((4, 8), 10).parameters()])


def loaded(model, layout_rows):
    """Copy numbers into a plain network, tensor by tensor in its own order."""
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), layout_rows, strict=True):
            parameter.copy_(values.reshape(parameter.shape))


def test_a_composite_trains_as_the_same_network_in_torch(bench):
    task = synthetic()._replace(settings={"steps_per_epoch": 4, "batch_size": 16})
    contender = bench.contenders.joint(task, cnn_host((1, 8, 8), 10, 1, 4), CONV4X2)
    settings = {"precision": Precision.FLOAT64, "host_lr": 0.1, "seed_lr": 0.1, "host_clip": 0.5, "seed_clip": 0.5}
    engine = esper.make(contender.task, 2, backend="eager", **settings)
    structure, state = engine.structure, bench.contenders.composite(engine, engine.init(3))
    (row,), env = structure.slots, 1
    learners = learners_of(state)
    host, bypass = plain((4,), 10).double(), plain((4, 8), 10).double()
    layouts = structure.host.layout, row.row(0)

    def rows(learners):
        own = learners.host.params[env : env + 1], learners.seeds.params[env : env + 1, row.blueprint_columns(0)]
        return [[*layout.views(part).values()] for layout, part in zip(layouts, own, strict=True)]

    for model, values in zip((host, bypass), rows(learners), strict=True):
        loaded(model, values)
    groups = [{"params": list(host.parameters()), "weight_decay": 5e-4}, {"params": list(bypass.parameters())}]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9)
    batches = draw_batches(engine.config, state, engine.data)
    plan = eager.plan(structure, take_table(state.slots), state.key.device)
    for step in range(4):
        batch = batch_at(structure, batches, step)
        learners, seen = eager.minibatch_step(structure, engine.hypers, plan, learners, state.slots.alpha, batch)
        x, y = batch.inputs[env], batch.targets[env]
        loss = F.cross_entropy(host(x) + bypass(x), y)
        optimizer.zero_grad()
        loss.backward()
        for group in groups:
            nn.utils.clip_grad_norm_(group["params"], 0.5)
        optimizer.step()
        assert float(seen.loss[env]) == pytest.approx(float(loss.detach()), abs=1e-12)
    for model, values in zip((host, bypass), rows(learners), strict=True):
        for parameter, value in zip(model.parameters(), values, strict=True):
            torch.testing.assert_close(value[0].reshape(parameter.shape), parameter.detach(), atol=1e-10, rtol=0)


def test_pruning_keeps_what_matters(bench):
    """Where the other channels give nothing, the narrow network computes what the wide one did."""
    wide, narrow = cnn_host((1, 8, 8), 10, 2, 4), cnn_host((1, 8, 8), 10, 2, 2)
    task = synthetic()
    engines = [
        esper.make(task._replace(host=h, blueprints=(), settings={}), 2, backend="eager") for h in (wide, narrow)
    ]
    state = engines[0].init(0)
    params = state.host.params.clone()
    dead = {0: ((1, 2), (0, 3)), 1: ((0, 1, 2, 7), (2, 3, 5, 6))}  # block -> by environment
    start = 0
    for number, block in enumerate(wide.blocks):
        if number in dead:
            for env, channels in enumerate(dead[number]):
                for name in ("norm.weight", "norm.bias"):
                    columns = block.layout.columns(name)
                    params[env, start + columns.start :][list(channels)] = 0.0
        start += block.layout.size
    state = state.replace(host=state.host.replace(params=params))
    small = bench.prune.narrowed(state, engines[1].init(0), (wide, narrow))
    tests = [engine.test(s) for engine, s in zip(engines, (state, small), strict=True)]
    torch.testing.assert_close(tests[0].loss, tests[1].loss, atol=1e-5, rtol=0)
    assert small.host.params.shape == (2, narrow.num_params)


def played_of(bench, curves, tests):
    zeros = torch.zeros(len(tests), dtype=torch.float64)
    spent = bench.flops.Spent(zeros + 1e9, zeros + 2e9, zeros, zeros)
    curve = torch.tensor([[0.0] * len(tests), curves], dtype=torch.float64)
    return bench.play.Played(zeros + 100, curve, torch.tensor(tests, dtype=torch.float64), zeros + 0.5, spent)


def test_rates_are_chosen_on_validation_and_reported_on_test(bench):
    study = bench.play.Study(synthetic(), 6, 2, (0.1, 0.3), 1, "eager")
    played = played_of(bench, [50.0] * 6 + [60.0] * 6, [99.0] * 6 + [float(number) for number in range(6)])
    contender = bench.contenders.static(study.task, cnn_host((1, 8, 8), 10, 1, 4))
    point = bench.play.best(contender, study, played, 1.0)
    assert point.rate == 0.3
    row = bench.report.figures(point)
    assert row["validation"] == 60.0
    assert row["test"]["mean"] == pytest.approx(2.5)
    error = statistics.stdev(range(6)) / math.sqrt(6)
    assert row["test"]["half_width"] == pytest.approx(2.5706 * error, rel=1e-3)  # Student's t, 5 degrees of freedom
    assert row["gflops"] == pytest.approx(3.0)


def test_differences_are_paired_with_the_best_that_is_no_larger(bench):
    def point(name, kind, params, validation, tests, partner=""):
        played = played_of(bench, [validation] * 6, tests)
        return bench.play.Point(name, kind, 0.1, {}, played._replace(params=played.params * 0 + params), 0.0, partner)

    points = [
        point("small", "static", 50, 80.0, [80.0] * 6),
        point("wide but worse", "static", 90, 70.0, [70.0] * 6),
        point("large", "static", 500, 99.0, [99.0] * 6),
        point("both, joint", "joint", 120, 90.0, [90.0, 91.0, 92.0, 93.0, 94.0, 95.0]),
        point("both, grown", "grown", 120, 91.0, [91.0, 92.0, 93.0, 94.0, 95.0, 96.0], "both, joint"),
    ]
    rows = [bench.report.figures(each) for each in points]
    found = {(row["name"], row["minus"]): row for row in bench.report.compared(rows, points)}
    assert set(found) == {("both, joint", "small"), ("both, grown", "both, joint"), ("both, grown", "small")}
    assert found["both, grown", "both, joint"]["mean"] == pytest.approx(1.0)
    assert found["both, grown", "both, joint"]["half_width"] == pytest.approx(0.0)
    assert [row["name"] for row in bench.chart.frontier(rows, "params")] == ["small", "large"]


def test_the_host_of_a_task_itself_grows_where_that_is_asked_for(bench):
    task = synthetic()._replace(name="on disk")
    usual, own = (bench.contenders.field_of(task, True, asked) for asked in (False, True))
    assert (usual.start.name, own.start) == ("cnn 4-8", task.host)
    assert own.hosts == (*usual.hosts, task.host)
    names = [each.name for each in bench.contenders.contenders(task, own)]
    assert f"{task.host.name} + conv8x2, grown" in names
    assert len(set(names)) == len(names)


def test_axes_of_the_chart(bench):
    assert bench.chart.height_of(99.0) == 0.0
    assert bench.chart.height_of(90.0) == pytest.approx(-1.0)
    assert bench.chart.height_of(100.0) == bench.chart.height_of(99.9)
    axis = bench.chart.Axis("", math.log10(80), math.log10(1200))
    assert [words for _, words in bench.chart.log_ticks(axis)] == ["100", "200", "500", "1,000"]


def test_growth_epochs_of_the_peer(bench):
    assert bench.gromo.growth_epochs(4, 25) == frozenset()
    assert bench.gromo.growth_epochs(16, 24) == frozenset({4, 8, 12})
    assert len(bench.gromo.growth_epochs(32, 25)) == 7
    assert max(bench.gromo.growth_epochs(32, 25)) <= 17


def test_the_peer_says_that_it_is_missing(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "gromo.containers.growing_mlp", None)
    with pytest.raises(bench.gromo.MissingPeerError, match="pip install gromo"):
        bench.gromo.growing_mlp()


def test_the_command(bench, monkeypatch, tmp_path, capsys):
    host = cnn_host((1, 8, 8), 10, 1, 4)
    few = bench.contenders.Field((host,), host, (CONV4X2,), (0.05, 0.1), (4,))
    monkeypatch.setattr(bench.main, "field_of", lambda task, quick, own_host: few)
    monkeypatch.setattr(bench.main, "play_gromo", _missing(bench))
    bench.main.main(["--task", "synthetic", "--quick", "--epochs", "2", "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert "left out" in said.err
    found = json.loads((tmp_path / "frontier.json").read_text())
    assert [row["kind"] for row in found["rows"]] == ["static", "joint", "grown", "grown", "pruned"]
    assert found["rows"][1]["params"] == host.num_params + 438
    assert (tmp_path / "frontier.md").read_text() in said.out
    drawn = ElementTree.parse(tmp_path / "frontier.svg").getroot()
    assert len(drawn.findall(".//{*}circle/{*}title")) == 2 * len(found["rows"])


def _missing(bench):
    def play(*arguments):
        raise bench.gromo.MissingPeerError("gromo is not there")

    return play


REFUSED = {
    "--envs 3": "--envs = 3: expected 0, or at least 6, for an interval",
    "--envs -1": "--envs = -1: expected an integer from 0",
    "--seed -1": "--seed = -1: expected an integer from 0",
    "--threads -2": "--threads = -2: expected an integer from 0",
    "--epochs x": "--epochs = 'x': expected an integer from 0",
    "--out FILE": "FILE is no directory; expected a place for one",
    "--out FILE/below": "FILE is no directory; expected a place for one",
    "--policy nowhere": "nowhere: no such file",
    "--policy FILE": "FILE: not readable",
    "--rates 0.1,x": "--rates = '0.1,x': expected numbers in [0, 100]",
    "--rates nan": "--rates = 'nan': expected numbers in [0, 100]",
    "--rates 0.1,-1": "--rates = '0.1,-1': expected numbers in [0, 100]",
    "--final-rate nan": "--final-rate = nan: expected a number from -1 to 1",
    "--final-rate -0.5": "hypers.final_lr_fraction = -0.5: expected",
    "--optimizer sdg": "--optimizer = 'sdg': expected",
    "--only nobody": "--only: 'nobody': expected cnn 4",
    "--task nobody": "task 'nobody': expected one of",
    "--bogus 1": "unrecognized arguments: --bogus 1",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_allowed_is_one_line_before_anybody_trains(bench, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("kept")
    monkeypatch.setattr(bench.main, "play", None)
    with pytest.raises(SystemExit) as stopped:
        bench.main.main(["--task", "synthetic", "--quick", *words.split()])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("bench.frontier: ") and said.count("\n") == 1
    assert REFUSED[words] in said and [path.name for path in tmp_path.iterdir()] == ["FILE"]
