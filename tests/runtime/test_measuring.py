"""A measured run computes the same bits as one that is not, and its numbers are those of an independent reading."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import hessian

import esper.__main__
from esper.kasmina.counterfactuals import no_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage
from esper.nissa.profiles import PROFILES
from esper.runtime import measuring as module
from esper.runtime.landscape import validation_loss
from esper.runtime.measuring import Measuring, means
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings
from esper.simic.environment import EsperEnv
from esper.tamiyo.baselines import random_legal
from esper.tezzeret.native.library import library
from esper.utils import rng
from esper.utils.compilations import LEDGER, NAMES
from esper.utils.settings import SettingsError, read_settings

ROUNDS, ENVS, HORIZON = 2, 3, 6
BACKENDS = ["eager", pytest.param("native", marks=pytest.mark.skipif(library() is None, reason="no library"))]


def settings(out, **more):
    small = {"features": 8, "lstm": 8, "minibatches": 2, "epochs": 1, "horizon": HORIZON, "eval_envs": 0}
    small |= {"task": "synthetic", "num_envs": ENVS, "rounds": ROUNDS, "progress": "lines"}
    return TrainSettings(out=str(out), **(small | {"engine": {"steps_per_epoch": 2}} | more))


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def chain(folder):
    return [(row["return"], row["environments_hash"], row["learner_hash"]) for row in rows(folder)]


@pytest.fixture(scope="module", params=BACKENDS)
def plain(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "off"
    train(settings(folder, backend=request.param), io.StringIO())
    return request.param, folder


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "off"])
def test_every_profile_trains_the_same_bits(plain, tmp_path, name):
    backend, folder = plain
    log = tmp_path / "log.jsonl"
    measure = {"curvature": 2} if PROFILES[name].curvature else {}
    more = {"measure": measure, "sinks": f"json:{log}", "watch_envs": ENVS}
    LEDGER.since_told()
    train(settings(tmp_path / "run", backend=backend, telemetry=name, **more), io.StringIO())
    assert chain(tmp_path / "run") == chain(folder)
    added = set(rows(tmp_path / "run")[-1]) - set(rows(folder)[-1])
    profile = PROFILES[name]
    assert {"host_memory_bytes", "sinks_waiting", "training_seconds", *NAMES} <= added
    first, second = rows(tmp_path / "run")
    asked = first["cache_hits_programs"] + first["cache_misses_programs"]
    assert (asked > 0) == (backend == "native") and first["compilations_programs"] == first["cache_misses_programs"]
    assert {second[each] for each in NAMES} == {0.0}
    assert ("host_gradient_norm" in added) == bool(profile.gradients)
    assert ("sharpness" in added) == ("curvature" in added) == bool(profile.samples)
    assert ("class_accuracy_worst" in added) == profile.classes and ("block_0_gradient_norm" in added) == profile.layers
    for each in profile.percentiles if profile.gradients else ():
        assert f"host_gradient_p{each:g}" in added
    kinds = [json.loads(line)["kind"] for line in log.read_text().splitlines()]
    assert kinds.count("epoch.completed") == ROUNDS * HORIZON * min(profile.events, ENVS)
    assert kinds.count("command.issued") == kinds.count("epoch.completed") and "isolation.violated" not in kinds
    reports = [json.loads(line) for line in (tmp_path / "run" / "seeds.jsonl").read_text().splitlines()]
    ended = [each for each in reports if each["env"] < profile.events and each["success"] is not None]
    assert kinds.count("seed.reported") == len(ended)
    assert kinds.count("engine.step.done") == (ROUNDS * HORIZON if profile.operations else 0)


def test_off_is_the_engine_that_was_given(small_task):
    engine = esper.make(small_task, 2, backend="eager")
    assert Measuring(engine).engine is engine
    env = EsperEnv(engine)
    Measuring(engine).begin(env, 0)
    assert env.listeners == {}


def walked(task, profile, length, seed=0, **overrides):
    """A measured episode of random legal actions, with everything that happened."""
    engine = esper.make(task, 5, backend="eager", precision="float64", horizon=length, **overrides)
    measuring = Measuring(engine, profile, "small")
    env = EsperEnv(measuring.engine, seed=seed)
    seen = []
    measuring.begin(env, 0)
    env.listeners["test"] = lambda before, state, event, earned: seen.append((before, state, event))
    step, policy = env.reset(), random_legal(engine.codec)
    for number in range(length):
        keys = rng.fold_in(rng.key(seed), torch.arange(5), number)
        step["action"] = policy(step["action_mask"], keys)
        step = env.step(step)["next"]
    numbers, events = measuring.after(env, 1)
    return engine, seen, numbers, events


def test_numbers_of_seeds_are_means_over_those_that_there_were(small_task):
    """Slot by slot and stage by stage, the norm is what the definition's own health says of a single minibatch."""
    profile = replace(PROFILES["off"], gradients=1, environments=0)
    _, seen, numbers, _ = walked(small_task, profile, 12, steps_per_epoch=1)
    names, by_slot, by_stage = ("block0", "block1", "block2"), {}, {}
    for _, _, event in seen:
        norms, stages = event.epoch.health.seed_norm, event.life.before
        for env in range(5):
            for slot in range(3):
                stage = Stage(int(stages[env, slot]))
                if stage in (Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED):
                    by_slot.setdefault(names[slot], []).append(float(norms[env, slot]))
                    by_stage.setdefault(stage.name.lower(), []).append(float(norms[env, slot]))
    assert len(by_slot) == 3 and len(by_stage) >= 3
    for name, found in by_slot.items():
        assert numbers[f"slot_{name}_gradient_norm"] == pytest.approx(np.mean(found), rel=1e-9)
    for name, found in by_stage.items():
        assert numbers[f"stage_{name}_gradient_norm"] == pytest.approx(np.mean(found), rel=1e-9)
    hosts = torch.stack([event.epoch.health.host_norm for _, _, event in seen])
    assert numbers["host_gradient_norm"] == pytest.approx(float(hosts.mean()), rel=1e-9)
    known = {name for name in numbers if name.startswith(("slot_", "stage_")) and name.endswith("_norm")}
    assert known == {f"slot_{n}_gradient_norm" for n in by_slot} | {f"stage_{n}_gradient_norm" for n in by_stage}


def test_classes_are_those_of_the_measured_decisions(small_task):
    profile = replace(PROFILES["off"], gradients=4, classes=True)
    engine, seen, numbers, _ = walked(small_task, profile, 12)
    measured = [event.evaluation.class_accuracy.numpy() for _, _, event in seen[3::4]]
    whole = np.concatenate(measured)
    assert len(measured) == 3 and set(engine.data.validation.targets.tolist()) == set(range(4))
    for number in range(4):
        assert numbers[f"class_accuracy_{number}"] == pytest.approx(whole[:, number].mean())
    assert numbers["class_accuracy_worst"] == pytest.approx(whole.min(1).mean())
    assert numbers["class_accuracy_variance"] == pytest.approx(whole.var(1).mean())


def test_the_landscape_of_grown_networks_is_that_of_dense_hessians(small_task):
    """On validation samples, parameters of host and seeds together; the Hessian is formed by torch.func.hessian."""
    profile = replace(PROFILES["off"], samples=2, curvature=30, landscape=1)
    engine, seen, numbers, _ = walked(small_task, profile, 5, seed=4)
    state = seen[-1][1]
    loss, params = validation_loss(engine, state, 1)
    assert torch.allclose(loss(params), engine_loss(engine, state)[:1], rtol=1e-12)
    used = (params[0] != 0).nonzero().flatten()

    def own(part):
        return loss(params.index_put((torch.tensor(0), used), part))[0]

    values = np.linalg.eigvalsh(hessian(own)(params[0, used]).numpy())
    found = numbers["curvature"]
    assert np.abs(values - found).min() <= numbers["curvature_residual"] * abs(found) * (1 + 1e-9)
    assert abs(found) == pytest.approx(np.abs(values).max(), rel=0.02)
    assert numbers["sharpness"] > 0 and used.numel() > engine.structure.host.num_params


def engine_loss(engine, state):
    """Validation losses [E] as the engine's own evaluation gives them, alphas as they are now."""
    backend = engine.backend
    plan = backend.plan(take_table(state.slots), torch.device("cpu"))
    samples = engine.data.validation.samples
    return backend.evaluate(
        engine.hypers, plan, learners_of(state), state.slots.alpha, samples, no_changes(3)
    ).losses.mean(1)


def test_hosts_whose_gradients_explode_are_told(small_task):
    profile = replace(PROFILES["off"], gradients=1, environments=3)
    _, _, numbers, events = walked(small_task, profile, 2, host_lr=100.0)
    assert {event.kind for event in events} == {"gradient.anomaly"}
    assert {event.fields["environment"] for event in events} <= {0, 1, 2} and numbers["host_gradient_health"] < 1
    assert all(event.fields["task"] == "small" and event.round == 1 for event in events)
    _, _, _, calm = walked(small_task, replace(profile, environments=2), 2)
    assert calm == []


def test_means_leave_out_what_has_no_count():
    pair = {"a": torch.tensor([6.0, 2.0]), "b": torch.tensor([0.0, 0.0])}
    assert means([pair, {"a": torch.tensor([4.0, 3.0])}]) == {"a": 2.0}


def waited(engine, profile, episodes=1):
    """Episodes in which every environment waits."""
    measuring, found = Measuring(engine, profile), []
    env = EsperEnv(measuring.engine)
    for _ in range(episodes):
        measuring.begin(env, 0)
        step = env.reset()
        for _ in range(engine.config.horizon):
            step["action"] = torch.zeros(2, dtype=torch.int64)
            step = env.step(step)["next"]
        found.append(measuring.after(env, 1))
    return found


def broken(*arguments):
    raise ZeroDivisionError("a kernel")


def test_a_backend_that_fails_while_watched_goes_on_unwatched(small_task, caplog):
    engine = esper.make(small_task, 2, backend="eager", horizon=3)
    cracked = replace(engine, backend=engine.backend._replace(watched_epoch=broken))
    assert waited(cracked, replace(PROFILES["off"], gradients=1), 2) == [({}, []), ({}, [])]
    assert [record.message for record in caplog.records] == [
        "telemetry: gradients are not measured any more: ZeroDivisionError: a kernel"
    ]


def test_where_no_gradients_are_shown_a_line_says_so(small_task, caplog):
    engine = esper.make(small_task, 2, backend="eager", horizon=2, deterministic="strict")
    assert waited(engine, replace(PROFILES["standard"], resources=False)) == [({}, [])]
    expected = "telemetry: gradients are not measured: backend eager shows none here"
    assert [record.message for record in caplog.records] == [expected]


def test_a_network_without_second_derivatives_is_played_on(small_task, caplog, monkeypatch):
    monkeypatch.setattr(module, "landscape", broken)
    engine = esper.make(small_task, 2, backend="eager", horizon=3)
    found = waited(engine, replace(PROFILES["off"], gradients=3, curvature=2), 2)
    assert all("host_gradient_norm" in numbers and "curvature" not in numbers for numbers, _ in found)
    assert [record.message for record in caplog.records] == [
        "telemetry: the loss around networks is not measured any more: ZeroDivisionError: a kernel"
    ]


def test_a_lack_of_memory_is_no_fault_of_measuring(small_task, monkeypatch):
    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr(module, "landscape", full)
    with pytest.raises(MemoryError):
        waited(esper.make(small_task, 2, backend="eager", horizon=1), replace(PROFILES["off"], samples=1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--telemetry", "loud"], "--telemetry = 'loud': expected off or production"),
        (["--measure", "history=4"], "--measure: history = 4: expected an integer from 5 to 100"),
        (["--measure", "sample=4"], "did you mean 'samples'?"),
        (
            ["--telemetry", "research", "--measure", "scale=1"],
            "--measure: scale = 1: expected a number between 0 and 1",
        ),
    ],
)
def test_what_is_not_allowed_is_one_line_at_the_door(words, message, tmp_path, capsys):
    asked = ["train", "--out", str(tmp_path / "run"), "--task", "synthetic", *words]
    assert esper.__main__.main(asked) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_file_may_set_numbers_and_a_flag_beats_it(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('telemetry = "standard"\n[measure]\nsamples = 3\npercentiles = [5, 95]\n')
    found = read_settings(TrainSettings, ["--config", str(path), "--measure", "samples=7,layers=true"], "esper train")
    expected = replace(PROFILES["standard"], samples=7, layers=True, percentiles=(5.0, 95.0))
    assert found.profile == expected
    with pytest.raises(SettingsError, match="history"):
        _ = replace(found, measure={"history": 1}).profile


def test_the_command_lists_the_profiles(capsys):
    assert esper.__main__.main(["telemetry"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in PROFILES) and max(map(len, text.splitlines())) <= 120
    assert esper.__main__.main(["telemetry", "--loud"]) == 2
