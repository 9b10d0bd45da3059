"""``esper generate``: equal bits whatever was killed, resumed or shared out; who plays; how likely what was done is."""

import json
import os
import random
import re
import signal
import time
from collections import Counter

import pytest
import runtime_forks as forks
import torch

import esper.__main__
from esper.leyline.actions import Op
from esper.runtime.episodes_check import check_rows, replay_some
from esper.runtime.generate import GenerateSettings, blocks_of, generate
from esper.runtime.mix import Share, shares_of, who_plays
from esper.runtime.policy_checkpoint import load_policy, load_run_to_play
from esper.runtime.recorded import outcome_of, played_by
from esper.runtime.rollout import rollout
from esper.runtime.scene import Rules, build_scene
from esper.simic.episodes.dataset import Episodes
from esper.simic.episodes.shards import EpisodesError
from esper.tamiyo.baselines import legal_log_probs
from esper.tamiyo.interface import from_table
from esper.tamiyo.policies import random_policy
from esper.utils.failpoints import Fault
from esper.utils.settings import SettingsError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")

MIX = "wait:0.2,random:0.2,heuristic:0.2,script:norm from 1:0.2,thompson:0.2"
HORIZON = 4


def words(folder, episodes=11, **more):
    given = {"task": forks.NAME, "horizon": HORIZON, "num-envs": 4, "policies": MIX, "explore": 0.1, "backend": "eager"}
    given |= {"episodes": episodes, "out": folder, "progress": "off"} | more
    return ["generate", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def run(*command):
    assert esper.__main__.main(list(command)) == 0


def files_of(folder):
    skipped = ("lock", "owner.json")
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in skipped}


@pytest.fixture(scope="module")
def dataset(tiny_task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "set"
    run(*words(folder))
    return folder


def test_rows_hold_and_episodes_play_again(dataset):
    episodes = Episodes.open(dataset)
    episodes.verify()
    check_rows(episodes)
    assert replay_some(episodes, 11) == (11, True)
    assert episodes.manifest.episodes == 11 and episodes.steps == 11 * HORIZON
    assert [shard.episodes for shard in episodes.manifest.shards] == [4, 4, 3]
    assert episodes.read("truncated").reshape(11, HORIZON)[:, -1].all() and not episodes.read("terminated").any()


def test_an_episode_is_a_function_of_the_seed_and_its_number(dataset, tmp_path):
    """Other batches, and in two commands: the same rows."""
    run(*words(tmp_path / "set", 5, **{"num-envs": 3}))
    run(*words(tmp_path / "set", 11, **{"num-envs": 3}))
    one, other = Episodes.open(dataset), Episodes.open(tmp_path / "set")
    assert [shard.episodes for shard in other.manifest.shards] == [3, 2, 1, 3, 2]
    for column in one.columns:
        assert one.read(column.name).numpy().tobytes() == other.read(column.name).numpy().tobytes(), column.name


def test_probabilities_are_those_of_the_mixture(dataset):
    """Against a count: of a policy that draws nothing, of waiting alone, and of random by its own formula."""
    episodes = Episodes.open(dataset)
    codec = from_table(episodes.manifest.facts["interface"]).codec
    chance, mask, action = (episodes.read(name) for name in ("probability", "action_mask", "action"))
    names = [episodes.manifest.policies[index]["name"] for index in episodes.read("policy").tolist()]
    for row, name in enumerate(names):
        ops = {int(codec.op[each]) for each in mask[row].nonzero().flatten()}
        whatever = float(legal_log_probs(codec, mask[row : row + 1])[0, action[row]].exp())
        assert whatever <= 1 / len(ops) + 1e-6
        if name == "thompson":
            assert torch.isnan(chance[row])
        elif name == "random":
            assert chance[row] == pytest.approx(whatever, abs=1e-6)
        elif name == "wait":
            mine = 0.9 * (int(codec.op[action[row]]) == Op.WAIT)
            assert chance[row] == pytest.approx(mine + 0.1 * whatever, abs=1e-6)
        else:
            assert min(abs(chance[row] - 0.1 * whatever), abs(chance[row] - 0.9 - 0.1 * whatever)) < 1e-6
    assert set(names) == set(episodes.manifest.by_policy) and len(set(names)) == 5


def test_what_is_recorded_is_what_a_rollout_says(tiny_task, tmp_path):
    """The report of recorded episodes of one policy, against an evaluation of it in the same environments."""
    run(*words(tmp_path / "set", 6, policies="random:1", explore=0, seed=4))
    episodes = Episodes.open(tmp_path / "set")
    found = outcome_of(episodes, "random", played_by(episodes, 0))
    rules = Rules(task=forks.NAME, horizon=HORIZON, deterministic="strict")
    scene = build_scene(rules, 6, "eager")
    wanted = rollout(scene.engine, random_policy(scene.engine.codec), 4, scene.mode, scene.params)[1]
    for name in ("test_accuracy", "utility", "price", "val_accuracy", "test_loss", "test_bits", "val_bits", "added"):
        assert getattr(found, name).double().tolist() == getattr(wanted, name).double().tolist(), name
    for name in ("total_reward", "germinated", "fossilized", "culled", "rollbacks", "refused", "operations"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist(), name


def test_shares_are_kept_to_within_a_few_episodes():
    shares = shares_of("a:0.5,b:0.25,c:0.15,d:0.1")
    for seed, count in ((0, 100), (2, 1000), (98, 10_000)):
        played = Counter(who_plays(shares, seed, range(count)))
        assert all(abs(played[index] - count * each.share) <= 4 for index, each in enumerate(shares)), played
    assert who_plays([Share("a", 1.0)], 5, range(50)) == [0] * 50


@pytest.mark.parametrize("text", ["wait", "wait:0", "wait:0.5,random:0.4", "wait:0.5,wait:0.5", ":1", "wait:-1", ""])
def test_odd_mixes_are_refused(text):
    with pytest.raises(SettingsError, match="--policies"):
        shares_of(text)


def test_blocks_are_what_is_missing():
    """Against sets of numbers."""
    draw = random.Random(0)
    for _ in range(200):
        first, count, size = draw.randrange(5), draw.randrange(1, 30), draw.randrange(1, 9)
        there = [(at, 1) for at in draw.sample(range(40), draw.randrange(10))]
        blocks = blocks_of(first, count, size, there)
        numbers = [number for at, n in blocks for number in range(at, at + n)]
        assert numbers == sorted(set(range(first, first + count)) - {at for at, _ in there})
        assert all(n <= size and (at - first) // size == (at + n - 1 - first) // size for at, n in blocks)


def test_another_mix_is_a_part_behind_the_first_and_another_task_is_refused(dataset, tmp_path):
    folder = tmp_path / "set"
    run(*words(folder, 4))
    run(*words(folder, 3, policies="random:1", explore=0))
    episodes = Episodes.open(folder)
    assert [part["first"] for part in episodes.manifest.parts] == [0, 4]
    assert episodes.numbers.tolist() == list(range(7)) == episodes.read("number").tolist()
    assert replay_some(episodes, 7) == (7, True)
    with pytest.raises(EpisodesError, match="horizon is 4 there, and 3 here"):
        generate(GenerateSettings(task=forks.NAME, horizon=3, out=str(folder), policies="random:1"))
    with pytest.raises(SettingsError, match="others behind them"):
        run_settings = {"horizon": HORIZON, "num_envs": 4, "policies": MIX, "explore": 0.1, "backend": "eager"}
        generate(GenerateSettings(task=forks.NAME, out=str(folder), episodes=5, progress="off", **run_settings))


@pytest.mark.parametrize(
    "odd", [{"seed": 3}, {"out": ""}, {"min": 2}, {"policies": "nobody:1"}, {"policies": "script:nothing:1"}]
)
def test_odd_settings_are_told_in_a_line(tiny_task, tmp_path, capsys, odd):
    assert esper.__main__.main(words(tmp_path / "set", **odd)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_data_check_and_report_are_commands(dataset, capsys):
    run("data", "check", str(dataset), "--replay", "2", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["replayed"], found["replay"]) == (11, 2, "bit for bit")
    status = esper.__main__.main(["data", "report", str(dataset), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert sum(row["episodes"] for row in report["policies"].values()) == 11
    assert status == bool(report["errors"])
    esper.__main__.main(["data", "report", str(dataset)])
    assert "clusters of states" in capsys.readouterr().out


def test_the_report_names_what_is_not_healthy(tiny_task, tmp_path, capsys):
    run(*words(tmp_path / "set", 16, policies="wait:1", explore=0, **{"num-envs": 16}))
    capsys.readouterr()
    assert esper.__main__.main(["data", "report", str(tmp_path / "set")]) == 1
    told = capsys.readouterr().out
    assert (
        "error: GERMINATE is 0 %" in told and "0 nats; expected 0.3" in told and "one operation alone; expected" in told
    )


def lives(folder, log, moments):
    """Kill the command at moments, each given a chance of its own, until it ends by itself; how often it was killed."""
    killed = 0
    for fault, seconds in moments:
        child = forks.start(words(folder), log, fault=fault)
        status = forks.killed_after(child, seconds)
        status = forks.ended(child) if status is None else status
        assert status in (0, -signal.SIGKILL), log.read_text()
        killed += status != 0
        if (folder / "manifest.json").exists():
            episodes = Episodes.open(folder)
            episodes.verify()
            check_rows(episodes)
        if status == 0:
            break
    return killed


@pytest.mark.parametrize("number", [3, pytest.param(100, marks=pytest.mark.large)])
def test_a_killed_command_goes_on_to_the_same_bits(dataset, tmp_path, number):
    """At random file operations and at random times; each directory is killed in up to three times in a row."""
    draw, wanted, killed, tried = random.Random(number), files_of(dataset), 0, 0
    while killed < number:
        folder, log = tmp_path / f"set-{tried}", tmp_path / "log"
        tried += 1
        moments = []
        for _ in range(3):
            point, arrival = draw.choice(("open", "write", "sync", "rename", "sync-folder")), draw.randrange(1, 120)
            moments.append(draw.choice([(Fault(point, "kill", arrival), 60.0), (None, draw.uniform(0.05, 1.5))]))
        killed += lives(folder, log, moments)
        assert forks.one_life(words(folder), log) == 0, log.read_text()
        assert files_of(folder) == wanted
        assert not list((folder / "incoming").iterdir()) and not list(folder.rglob("*.tmp-*"))
    assert killed >= number
    print(f"{killed} kills in {tried} directories")  # noqa: T201


def test_a_command_that_is_asked_to_stop_says_so_and_goes_on(dataset, tmp_path):
    folder, log = tmp_path / "set", tmp_path / "log"
    child = forks.start(words(folder), log)
    while not list((folder / "shards").glob("*")):
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert forks.ended(child) == 128 + signal.SIGTERM
    assert re.search(r"SIGTERM: stopped with \d+ episodes; the same command goes on", log.read_text())
    Episodes.open(folder).verify()
    run(*words(folder))
    assert files_of(folder) == files_of(dataset)


def test_a_run_plays_along_and_tells_its_probabilities(tiny_task, tmp_path):
    """A learned policy's share against another that decides likewise; one that was trained on is another policy."""
    place = tmp_path / "run"
    run(*forks.words(place, 1, horizon=HORIZON))
    run(*words(tmp_path / "set", 8, policies=f"{place}:0.5,wait:0.5", explore=0))
    episodes = Episodes.open(tmp_path / "set")
    entry = episodes.manifest.policies[0]
    assert entry["asked"] == str(place) and entry["kind"] == "told" and len(entry["digest"]) == 64
    learned = episodes.read("policy") == 0
    assert 0 < int(learned.sum()) < len(learned)
    assert (episodes.read("probability")[~learned] == 1).all() and (episodes.read("entropy")[~learned] == 0).all()
    mask = episodes.read("action_mask")
    chosen = mask.sum(1) > 1
    assert (episodes.read("entropy")[learned & chosen] > 0).all()
    scene = build_scene(Rules(task=forks.NAME, horizon=HORIZON, deterministic="strict"), 8, "eager")
    policy = load_policy(load_run_to_play(place), scene.engine.interface, greedy=False, strict=True)
    played = rollout(scene.engine, policy, 2, scene.mode, scene.params)[1]
    mine = episodes.read("policy", episodes.starts) == 0
    for name, field in (("action", played.trace.action), ("probability", played.trace.diagnostics.probability)):
        assert episodes.read(name).reshape(8, -1)[mine].tolist() == field.T[mine].tolist(), name
    run(*forks.words(place, 2, horizon=HORIZON))
    run(*words(tmp_path / "set", 4, policies=f"{place}:1", explore=0))
    names = [each["name"] for each in Episodes.open(tmp_path / "set").manifest.policies]
    assert names == [str(place), "wait", f"{place} (2)"]


TASK = """
import esper
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.tolaria.synthetic import synthetic

def task():
    data = synthetic((1, 4, 4), num_classes=3, num_train=12, num_val=6, num_test=6, noise=0.7)
    numbers = {"slots": (0,), "batch_size": 4, "steps_per_epoch": 1, "eval_batch_size": 6, "horizon": 2}
    return esper.Task("mine", cnn_host((1, 4, 4), 3, num_blocks=1, base_channels=2), CONV_BLUEPRINTS, data, numbers)
"""


def test_two_processes_make_what_one_makes(tmp_path, monkeypatch):
    (tmp_path / "my_generated_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    one, two = tmp_path / "one", tmp_path / "two"
    given = {"task": "py:my_generated_task:task", "horizon": 2, "policies": "random:0.5,wait:0.5"}
    run(*words(one, 10, **given))
    run(*words(two, 10, **given, max=2))
    assert files_of(one) == files_of(two)
