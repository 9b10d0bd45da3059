"""The worked examples at small sizes: what they print is what they compute, and their laws hold."""

import importlib
import io
import re

import pytest
import torch
from docs_texts import FOLDER, blocks, text_of

from esper.docs.examples import own_blueprint, own_module, own_policy
from esper.kasmina.checks import check_blueprint
from esper.kasmina.layout import Layout
from esper.runtime.build import make
from esper.runtime.tasks import digits, named
from esper.tamiyo.policies import PolicyInput
from esper.utils import rng

NAMES = ("own_blueprint", "own_module", "own_policy")


def rows(text):
    """(name, mean test accuracy, mean J) of the table's lines."""
    return re.findall(r"^(\S.*?)  +(-?[\d.]+) ± [\d.]+ +(-?[\d.]+) ± [\d.]+", text, re.M)


def agrees(text, outcomes):
    """Whether a table has every outcome with its means."""
    expected = [(each.policy, each.test_accuracy.double().mean(), each.utility.double().mean()) for each in outcomes]
    found = rows(text)
    assert [name for name, _, _ in found] == [name for name, _, _ in expected]
    for (_, accuracy, utility), (_, mean, worth) in zip(found, expected, strict=True):
        assert float(accuracy) == pytest.approx(float(mean), abs=0.051)
        assert float(utility) == pytest.approx(float(worth), abs=0.051)


def test_a_blueprint_of_one_s_own_grows_beside_the_shipped():
    out, settings = io.StringIO(), own_blueprint.BlueprintExampleSettings(num_envs=6, horizon=4, hidden=4)
    outcomes = own_blueprint.run(settings, out)
    agrees(out.getvalue(), outcomes)
    assert "rows4: 366 parameters beside the host's 94" in out.getvalue()  # (8 + 1) 4 + (8 * 4 + 1) 10
    assert outcomes[1].policy == "grow rows4" and float(outcomes[1].added.max()) == 366


def test_its_blueprint_is_that_of_a_loop_over_networks_and_rows():
    """Against one network, one sample and one row at a time."""
    mine, points = own_blueprint.rows_bypass(3), digits().host.points
    source, target = points["input"], points["logits"]
    check_blueprint(mine, source, target)
    keys = rng.fold_in(rng.key(1), torch.arange(2))
    layout = Layout(mine.params(source, target))
    weights = {
        name: rng.uniform(rng.fold_in(keys, at), tuple(each.shape[1:])) - 0.5
        for at, (name, each) in enumerate(layout.views(layout.init(keys, torch.float32)).items())
    }
    x = rng.uniform(keys, (3, 1, 8, 8)) - 0.5
    y = mine.infer(weights, {}, x)
    for n in range(2):
        for sample in range(3):
            hidden = [weights["row.weight"][n] @ row + weights["row.bias"][n] for row in x[n, sample, 0]]
            expected = weights["head.weight"][n] @ torch.cat(hidden).clamp(min=0) + weights["head.bias"][n]
            assert torch.allclose(y[n, sample], expected, atol=1e-5)


def test_a_module_grows_and_is_taken_home():
    out, settings = io.StringIO(), own_module.ModuleExampleSettings(num_envs=6, horizon=4)
    grown = own_module.run(settings, out)
    agrees(out.getvalue(), grown.outcomes)
    assert "310 parameters" in out.getvalue()  # 64 * 4 + 4 + 4 * 10 + 10
    assert torch.allclose(grown.accuracy, grown.outcomes[-1].test_accuracy.double(), atol=0.6)
    assert torch.equal(grown.parameters, 310 + grown.outcomes[-1].added.long())


def test_its_policy_does_what_it_says():
    """Against a loop over environments."""
    engine = make(named("digits_varied"), 12, steps_per_epoch=1, batch_size=4, val_samples=8)
    policy, state, codec = own_policy.frugal(engine), engine.init(3), engine.codec
    keys = rng.fold_in(rng.key(0), torch.arange(12))
    for epoch in (0, own_policy.LATE):
        seen = PolicyInput(state.replace(epoch=state.epoch + epoch), engine.observe(state), engine.mask(state), keys)
        action = policy.act(None, seen)[1].action
        for env in range(12):
            chosen = codec.actions[int(action[env])]
            waits = bool(state.context.data_share[env] < 0.5) and epoch == 0
            kind = "conv16x2" if bool(state.context.price[env] < 1) else "conv4x2"
            assert chosen.op.name == ("WAIT" if waits else "GERMINATE")
            assert waits or codec.blueprint_names[chosen.blueprint] == kind
    assert len(set(state.context.price.tolist())) == 2 and len(set(state.context.data_share.tolist())) == 2


def test_a_policy_of_one_s_own_plays_beside_scripts():
    out, settings = io.StringIO(), own_policy.PolicyExampleSettings(num_envs=6, horizon=3)
    outcomes = own_policy.run(settings, out)
    agrees(out.getvalue(), outcomes)
    assert int(outcomes[0].refused.sum()) == 0 and float(outcomes[-1].added.sum()) == 0


def test_the_text_has_a_command_and_figures_for_each():
    text = text_of(FOLDER / "examples.md")
    for name in NAMES:
        assert f"python -m esper.docs.examples.{name}" in text and (FOLDER / "examples" / f"{name}.py").exists()
    tables = [rows(body) for body in blocks(FOLDER / "examples.md", "text")]
    assert [len(table) for table in tables if table] == [4, 3, 5]


@pytest.mark.large
@pytest.mark.parametrize(("name", "kind"), [*zip(NAMES, ("Blueprint", "Module", "Policy"), strict=True)])
def test_the_quoted_figures_come_again(name, kind):
    """As the command stands: on another machine other bits, so means within half of their intervals."""
    module, out = importlib.import_module(f"esper.docs.examples.{name}"), io.StringIO()
    module.run(getattr(module, f"{kind}ExampleSettings")(), out)
    quoted = blocks(FOLDER / "examples.md", "text")[NAMES.index(name)]
    for (label, accuracy, _), (found, mean, _) in zip(rows(quoted), rows(out.getvalue()), strict=True):
        half = float(re.search(rf"^{re.escape(label)} +[\d.]+ ± ([\d.]+)", quoted, re.M)[1])
        assert label == found and abs(float(accuracy) - float(mean)) <= max(half / 2, 0.2)
