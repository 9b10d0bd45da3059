"""What must hold once ``blueprint.patch`` is applied: the inverted bottleneck is there wherever a conv seed may grow.

To be run against a patched copy of the package: ``python -m pytest blueprint_law.py``. The kernels are those of the
package, so nothing is built for the copy.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import esper
from esper.bench.cases import cases_of
from esper.kasmina.checks import check_blueprint
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.site import conv_site, token_site, vector_site
from esper.leyline.actions import Op
from esper.leyline.stages import ACTIVE, is_in
from esper.runtime.catalogue import describe
from esper.runtime.report_episodes import seed_section
from esper.runtime.rollout import rollout
from esper.runtime.tasks import TASKS, named
from esper.tamiyo.policies import from_mask
from esper.tamiyo.scripted import grow
from esper.tezzeret.native.library import library
from esper.utils import rng

NAMES = [blueprint.name for blueprint in CONV_BLUEPRINTS]
KIND = NAMES.index("inverted")
NEW = CONV_BLUEPRINTS[KIND]
NETWORKS, SAMPLES, MAP = 2, 3, (5, 3)
GROUPS = {2: 8, 4: 1, 8: 2}
"""Of a norm of 4C channels: as many as leave 16 channels to each, where any number does."""


def size(channels: int) -> int:
    return 8 * channels**2 + 52 * channels


def draw(number: int, *shape: int) -> Tensor:
    return rng.normal(rng.fold_in(rng.key(7), number), shape, torch.float64)


def in_torch(channels: int) -> nn.Sequential:
    """The branch, without weights."""
    wide, groups = 4 * channels, GROUPS[channels]
    with torch.device("meta"):
        return nn.Sequential(
            *(nn.Conv2d(channels, wide, 1, bias=False), nn.GroupNorm(groups, wide), nn.ReLU()),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.GroupNorm(groups, wide), nn.ReLU()),
            nn.Conv2d(wide, channels, 1, bias=False),
        )


@pytest.mark.parametrize("channels", GROUPS)
def test_equals_torch_nn_with_its_gradients(channels):
    layout, net = NEW.layout(conv_site(channels, *MAP)), in_torch(channels)
    names = [name for name, _ in net.named_parameters()]
    rows = (0.5 * draw(1, NETWORKS, layout.size)).requires_grad_()
    x = draw(2, NETWORKS, SAMPLES, channels, *MAP).requires_grad_()

    def wanted(row: Tensor, features: Tensor) -> Tensor:
        views = [view[0] for view in layout.views(row.unsqueeze(0)).values()]
        return features + functional_call(net, dict(zip(names, views, strict=True)), features)

    found = NEW.infer(layout.views(rows), {}, x)
    expected = torch.stack([wanted(row, features) for row, features in zip(rows, x, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = draw(3, *x.shape)
    grads = [torch.autograd.grad((y * weights).sum(), (rows, x)) for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 5, 3), (32, 2, 2)])
def test_keeps_the_contract_and_starts_as_the_identity(shape):
    site, (channels, height, width) = conv_site(*shape), shape
    check_blueprint(NEW, site)
    assert NEW.layout(site).size == size(channels)
    assert NEW.flops(site, site) == height * width * (8 * channels**2 + 36 * channels)
    x = draw(4, NETWORKS, SAMPLES, *shape)
    start = NEW.layout(site).init(rng.split(rng.key(3), NETWORKS), torch.float64)
    assert torch.equal(NEW.infer(NEW.layout(site).views(start), {}, x), x)
    assert not any(NEW.fits(other, other) for other in (token_site(5, 8), vector_site(8)))


def test_presets_of_all_kinds_offer_it_where_it_fits():
    presets = [task for task in map(named, TASKS) if task.blueprints is CONV_BLUEPRINTS]
    sites = [slot for task in presets for slot in describe(task)["slots"]]
    assert len(presets) > 1 and {site["site"] for site in sites} == {"conv"}
    assert all(site["blueprints"]["inverted"] == size(site["shape"][0]) for site in sites)


def test_actions_observations_benchmarks_and_reports_know_it(small_task):
    engine = esper.make(small_task, 2, backend="eager")
    slots, blends = engine.config.num_slots, len(engine.config.blends)
    for op in (Op.GERMINATE, Op.CHANGE_BLUEPRINT):
        offered = (engine.codec.blueprint == KIND) & (engine.codec.op == int(op))
        assert offered.sum() == slots * blends
    columns = [column for column in engine.columns if column.endswith("blueprint=inverted")]
    assert len(columns) == slots
    assert "env-step-inverted" in cases_of(small_task)
    _, outcome = rollout(engine, from_mask("inverted", grow(engine.codec, "inverted")), seed=1)
    assert outcome.seeds.kind.tolist() == [KIND] * int(outcome.germinated.sum()) and outcome.fossilized.all()
    assert "inverted" in seed_section([outcome], engine.codec.blueprint_names)


@pytest.mark.skipif(library() is None, reason="no C++ compiler")
def test_native_runs_it_as_eager_does(small_task):
    engines = [esper.make(small_task, 3, backend=name) for name in ("native", "eager")]
    policy, state = grow(engines[0].codec, "inverted"), engines[0].init(1)
    for _ in range(6):
        after, _ = engines[0].step(state, policy(engines[0].mask(state)))
        wanted, _ = engines[1].step(state, policy(engines[1].mask(state)))
        for part in ("host", "seeds"):
            torch.testing.assert_close(after[part].params, wanted[part].params, rtol=0, atol=1e-6)
        torch.testing.assert_close(after.signals.val_loss, wanted.signals.val_loss, rtol=0, atol=1e-6)
        moved = (after.seeds.params - state.seeds.params).abs().amax()
        state = after
    assert is_in(state.slots.stage, ACTIVE).any() and moved > 1e-3
