"""The rivals of bench/ do Esper's work, and the gate notices when they do not."""

from collections import Counter

import numpy as np
import pytest


@pytest.fixture(scope="module")
def bench(bench_module):
    """Imports a script by name."""
    return bench_module


DIGITS, CIFAR = ("digits", False, 3, 64, 0), ("cifar", True, 2, 6, 0)
NOW, CHARS = ("digits-now", False, 17, 8, 5), ("chars", True, 17, 4, 0)
on_digits = pytest.mark.parametrize("workload", [DIGITS], indirect=True, ids=["digits"])
on_digits_now = pytest.mark.parametrize("workload", [NOW], indirect=True, ids=["digits-now"])
on_chars = pytest.mark.parametrize("workload", [CHARS], indirect=True, ids=["chars"])


@pytest.fixture(scope="module", params=[DIGITS, CIFAR, NOW], ids=lambda param: param[0])
def workload(bench, request, tmp_path_factory):
    """A small workload in float64 as the contenders read it; once with shared minibatches."""
    shape, shared, steps, batch, seed = request.param
    config = bench("draw").WorkloadConfig(shape, 4, "float64", shared, seed=seed)
    engine = bench("draw").build_engine(config, "eager", steps_per_epoch=steps, batch_size=batch)
    path = tmp_path_factory.mktemp("bench") / "workload.npz"
    bench("workload").save(bench("draw").export(engine, bench("draw").draw_state(engine, config), config), path)
    return bench("workload").load(path)


@pytest.fixture(scope="module")
def run(bench):
    """Trains a contender for some epochs, from the beginning."""

    def trajectory(contender, epochs):
        contender.reset()
        losses = [contender.train(epoch) for epoch in range(epochs)]
        scores = np.column_stack(contender.validate())
        return bench("gate").Trajectory(np.concatenate(losses), scores, contender.norms())

    return trajectory


@pytest.fixture(scope="module")
def esper(bench, workload):
    """Esper, eager."""
    return bench("esper_step").prepare(workload, "eager")


@pytest.fixture(scope="module")
def truth(run, workload, esper):
    """What Esper did."""
    return run(esper, len(workload.indices))


@pytest.mark.parametrize("options", [{}, {"channels_last": True}], ids=["contiguous", "channels_last"])
def test_the_loop_of_modules_passes_the_gate(bench, run, workload, truth, options):
    found = bench("gate").compare(
        "float64", run(bench("loop").prepare(workload, **options), len(workload.indices)), truth
    )
    assert found.green and found.steps >= 50 and found.strays == 0, found
    assert (workload.kind >= 0).sum() == workload.kind.size / 2
    np.testing.assert_array_equal(truth.norms[:, 1:] > 0, workload.kind >= 0)


@on_digits
def test_what_is_timed_is_what_passed_the_gate(bench, run, workload, esper, truth):
    losses, scores, _ = run(esper, 1)
    np.testing.assert_array_equal(losses, truth.losses[: workload.steps])
    for contender in (esper, bench("loop").prepare(workload)):
        for _ in range(2):
            contender.reset()
            outcome = contender.step()
            np.testing.assert_allclose(outcome.mean_loss, losses.mean(0), rtol=1e-12)
            np.testing.assert_allclose(np.column_stack(outcome.scores), scores, atol=1e-4)


def other_kind(workload):
    kind = workload.kind.copy()
    env, slot = np.argwhere(kind >= 0)[0]
    kind[env, slot] = -1
    seeds = [list(groups) for groups in workload.seeds]
    seeds[slot][workload.kind[env, slot]] = seeds[slot][workload.kind[env, slot]][1:]
    return workload._replace(kind=kind, seeds=seeds)


def other_numbers(**numbers):
    def change(workload):
        structure = workload.structure
        return workload._replace(structure=structure._replace(numbers=structure.numbers._replace(**numbers)))

    return change


WRONG = {
    "a seed is missing": other_kind,
    "momentum": other_numbers(momentum=0.899),
    "weight decay": other_numbers(host_decay=4e-4),
    "seed's clipping": other_numbers(seed_clip=1e-3),
    "alpha": lambda w: w._replace(alpha=np.where(w.alpha == 0.5, 0.501, w.alpha)),
    "isolation": lambda w: w._replace(isolated=np.zeros_like(w.isolated)),
    "straight through": lambda w: w._replace(training=np.zeros_like(w.training)),
    "seed's rate": other_numbers(seed_lr=0.0),
    "one sample": lambda w: w._replace(indices=np.concatenate((w.indices[..., 1:], w.indices[..., 1:2]), -1)),
}


@on_digits
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_other_work_is_red(bench, run, workload, truth, change):
    loop = bench("loop").prepare(change(workload))
    assert not bench("gate").compare("float64", run(loop, len(workload.indices)), truth).green


WRONG_NOW = {
    "the objective's alpha": other_numbers(alpha_target=0.9),
    "isolation": lambda w: w._replace(isolated=np.zeros_like(w.isolated)),
    "objectives": lambda w: w._replace(training=np.zeros_like(w.training)),
    "bypasses": lambda w: w._replace(kind=np.where(np.arange(3) == 2, -1, w.kind)),
}


@on_digits_now
@pytest.mark.parametrize("change", WRONG_NOW.values(), ids=WRONG_NOW)
def test_other_objectives_and_bypasses_are_red(bench, run, workload, truth, change):
    silent = workload.training
    merged = (workload.kind >= 0) & ~silent
    assert silent[:, 2].any() and (silent[:, 0] & merged[:, 1] & merged[:, 2]).any(), "what an objective may pass"
    loop = bench("loop").prepare(change(workload))
    assert not bench("gate").compare("float64", run(loop, len(workload.indices)), truth).green


@on_chars
@pytest.mark.parametrize("change", [other_numbers(adam_beta1=0.899), other_kind], ids=["Adam", "a seed is missing"])
def test_the_loop_of_tokens_passes_the_gate_and_other_work_does_not(bench, run, workload, truth, change):
    right, wrong = (bench("loop").prepare(work) for work in (workload, change(workload)))
    found = bench("gate").compare("float64", run(right, len(workload.indices)), truth)
    assert found.green and found.steps >= 50 and found.strays == 0, found
    assert not bench("gate").compare("float64", run(wrong, len(workload.indices)), truth).green


@on_digits_now
def test_who_cannot_do_the_work_is_left_out_by_name(bench, workload):
    how = bench("rivals").MeasureConfig(("esper", "loop", "jax-conv"), [0], 1, 1.0, {})
    able, left_out = bench("rivals").who_renders("digits-now", how)
    assert able.names == ("esper", "loop") and left_out == ("jax-conv",)
    assert bench("rivals").who_renders("digits", how) == (how, ())
    with pytest.raises(ValueError, match="jax-conv: shape 'digits-now'; expected one of digits, cifar"):
        bench("contender").start("jax-conv", workload, {})


@pytest.mark.parametrize("change", [{"isolation": "none"}, {"isolation": "straight_through"}, {"input_shape": (8,)}])
@on_digits_now
def test_networks_without_a_rendering_are_refused(bench, workload, change):
    with pytest.raises(ValueError, match="digits-now: isolation"):
        bench("loop").prepare(workload._replace(structure=workload.structure._replace(**change)))


@on_digits
def test_gate_never_lets_nan_or_other_numbers_pass(bench, truth):
    compare = bench("gate").compare
    broken = truth.losses.copy()
    broken[-1, :2] = np.nan
    assert compare("float32", truth, truth).green
    for other in ({"losses": broken}, {"losses": truth.losses * (1 + 2e-4)}, {"scores": truth.scores + 2}):
        assert not compare("float32", truth._replace(**other), truth).green
    assert not compare("float32", truth, truth._replace(norms=truth.norms * (1 + 2e-4))).green
    assert not compare("float32", truth, truth._replace(losses=broken)).green


@on_digits
def test_a_share_of_the_environments_does_the_same(bench, run, workload):
    whole = run(bench("loop").prepare(workload), 1).losses
    parts = [bench("workload").take(workload, part) for part in (slice(0, 1), slice(1, 4))]
    shares = [run(bench("loop").prepare(part), 1).losses for part in parts]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_the_deal_is_even(bench):
    config = bench("draw").WorkloadConfig("digits", 64)
    engine = bench("draw").build_engine(config, "eager")
    state = bench("draw").draw_state(engine, config)
    workload = bench("draw").export(engine, state, config)
    active = workload.kind >= 0
    counts = Counter(workload.kind[active].tolist())
    stages = Counter(state.slots.stage.numpy()[active].tolist())
    assert active.sum() == 96 and set(counts) == set(range(7)) and len(stages) == 5
    assert max(counts.values()) - min(counts.values()) <= 1 and max(stages.values()) - min(stages.values()) <= 1
    # 3x3 convolution of 1 to 4 channels on 8x8 positions, linear 4 to 10; 16 x 64 samples trained on, 180 validated
    conv, linear = 8 * 8 * 9 * 4, 4 * 10
    per_env = 16 * 64 * (3 * (conv + linear) - conv) + 180 * (conv + linear)
    assert bench("workload").flops(workload) == 2 * 64 * per_env


def test_no_time_behind_a_red_gate(bench):
    green, red = (bench("gate").Comparison(color, 50, 0.0, 0.0, 0.0, 0) for color in (True, False))
    begun = {"first_seconds": 3.0, "versions": {}, "options": {}, "peak_mb": 100.0}
    case = {
        "deal": bench("draw").WorkloadConfig("digits", 4),
        "starts": {name: dict(begun) for name in ("esper", "right", "wrong")},
        "verdicts": {"esper": green, "right": green, "wrong": red},
        "seconds": {"esper": [0.1, 0.2, 0.3], "right": [0.2, 0.4, 0.6]},
        "rates": [1e9, 2e9, 3e9],
        "failures": {"absent": "ended"},
        "left_out": ("unable",),
        **dict.fromkeys(("flops", "steps", "batch", "validation"), 1),
    }
    text = bench("report").table(bench("report").summarise(case))
    assert "| right | 400 (240 to 560) | 2.00 (2.00 to 2.00) |" in text
    assert "| wrong | no time |" in text and "absent failed: ended" in text
    assert "not render it: unable." in text
