"""``esper train --record``: what is recorded is what was played, is there whatever was killed, and changes nothing."""

import os
import random
import signal

import pytest
import runtime_forks as forks
import torch

import esper.__main__
from esper.nissa.sinks import METRICS, read_rows
from esper.runtime.episodes_check import check_rows, replay_some
from esper.runtime.fingerprints import ENVIRONMENTS, LEARNER
from esper.runtime.policy_checkpoint import SERIES, load_policy, load_run
from esper.simic.episodes.dataset import Episodes
from esper.tamiyo.interface import from_table
from esper.tamiyo.policies import PolicyInput
from esper.urza import series
from esper.utils.failpoints import Fault

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")

HORIZON, ROUNDS = 4, 4
SKIPPED = ("lock", "owner.json")


def words(folder, rounds=ROUNDS, **more):
    found = forks.words(folder, rounds, horizon=HORIZON)
    flags = {"record": "true"} | more
    return [*found, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]


def run(*command):
    assert esper.__main__.main(list(command)) == 0


def files_of(folder):
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in SKIPPED}


@pytest.fixture(scope="module")
def recorded(tiny_task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "run"
    run(*words(folder))
    return folder


def test_what_is_recorded_plays_again_and_is_what_the_metrics_say(recorded, tmp_path):
    """Observations, masks and rewards by the engine alone; returns against the rounds' lines; the run itself against
    one that records nothing.
    """
    episodes = Episodes.open(recorded / "episodes")
    episodes.verify()
    check_rows(episodes)
    assert replay_some(episodes, 1) == (forks.ENVS, True)
    assert replay_some(episodes, 100) == (ROUNDS * forks.ENVS, True)
    assert [shard.episodes for shard in episodes.manifest.shards] == [forks.ENVS] * ROUNDS
    assert episodes.manifest.by_policy == {"ppo": ROUNDS * forks.ENVS}
    rows = read_rows(recorded / METRICS)
    returns = episodes.read("reward").double().reshape(ROUNDS, -1, HORIZON).sum(2).mean(1)
    assert returns.tolist() == pytest.approx([row["return"] for row in rows], abs=1e-3)
    whole = episodes.read("terms").double().sum(1)
    assert torch.allclose(whole, episodes.read("reward").double(), atol=1e-4)
    run(*words(tmp_path / "run", record="false"))
    assert not (tmp_path / "run" / "episodes").exists()
    plain = read_rows(tmp_path / "run" / METRICS)
    for name in (ENVIRONMENTS, LEARNER):
        assert [row[name] for row in plain] == [row[name] for row in rows]


def test_probabilities_are_those_of_the_policy_that_played(tiny_task, tmp_path):
    """The first round's, against the first checkpoint's policy step by step, as an evaluation plays it."""
    run(*words(tmp_path / "run", 1, keep=9))
    episodes = Episodes.open(tmp_path / "run" / "episodes")
    first = min(series.moments(tmp_path / "run" / SERIES))
    loaded = load_run(series.member(tmp_path / "run" / SERIES, first))
    policy = load_policy(loaded, from_table(episodes.manifest.facts["interface"]), greedy=False)
    memory, places = policy.init(forks.ENVS), torch.arange(forks.ENVS)
    for step in range(HORIZON):
        rows = episodes.starts[places] + step
        seen = [episodes.read(name, rows) for name in ("observation", "action_mask")]
        key = torch.zeros(forks.ENVS, 2, dtype=torch.int64)
        memory, decision = policy.act(memory, PolicyInput(None, *seen, key))
        chances = decision.diagnostics.log_probs.double().exp()
        wanted = chances.gather(1, episodes.read("action", rows).unsqueeze(1)).squeeze(1)
        assert torch.allclose(episodes.read("probability", rows).double(), wanted, atol=1e-5)
        surprise = torch.special.entr(chances).sum(1)
        assert torch.allclose(episodes.read("entropy", rows).double(), surprise, atol=1e-5)


def test_an_offline_learner_learns_from_a_run(recorded, tmp_path):
    given = {"record": "false", "algorithm": "bc", "dataset": recorded / "episodes"}
    run(*words(tmp_path / "run", 1, **given), "--offline", "updates=2,fitted=1")
    assert read_rows(tmp_path / "run" / METRICS)[0]["surprise"] > 0


def test_two_tasks_have_a_dataset_each(tiny_task, tmp_path):
    """They share an interface that is wider than either's own; what is recorded is each task's own."""
    run(*words(tmp_path / "run", 1, task=f"{forks.NAME},synthetic"))
    for name, task in (("episodes", forks.NAME), ("episodes-2", "synthetic")):
        episodes = Episodes.open(tmp_path / "run" / name)
        episodes.verify()
        check_rows(episodes)
        assert replay_some(episodes, 9) == (forks.ENVS, True)
        assert episodes.manifest.facts["task"] == task


@pytest.mark.parametrize("number", [4, pytest.param(60, marks=pytest.mark.large)])
def test_a_killed_run_goes_on_to_the_same_bits(recorded, tmp_path, number):
    """At random file operations, and at random steps. What a checkpoint has behind it is there and verifies."""
    draw, wanted, killed, tried = random.Random(number), files_of(recorded / "episodes"), 0, 0
    while killed < number:
        folder, log = tmp_path / f"run-{tried}", tmp_path / "log"
        tried += 1
        for _ in range(3):
            point = draw.choice(("open", "write", "sync", "rename", "step", "minibatch"))
            fault = Fault(point, "kill", draw.randrange(1, 120 if point in ("open", "write", "sync") else 12))
            status = forks.one_life(words(folder), log, fault)
            assert status in (0, -signal.SIGKILL), log.read_text()
            if status == 0:
                break
            killed += 1
            done = max((moment[0] for moment in series.moments(folder / SERIES)), default=0)
            if (folder / "episodes" / "manifest.json").exists():
                episodes = Episodes.open(folder / "episodes")
                episodes.verify()
                check_rows(episodes)
                assert len(episodes) >= done * forks.ENVS
            else:
                assert not done
        assert forks.one_life(words(folder), log) == 0, log.read_text()
        assert files_of(folder / "episodes") == wanted
    print(f"{killed} kills of {tried} runs")  # noqa: T201


def test_a_run_that_goes_on_from_an_earlier_checkpoint_takes_back_what_came_after(recorded, tmp_path):
    folder = tmp_path / "run"
    run(*words(folder, keep=9))
    again = folder / SERIES / series.member(folder / SERIES, series.moments(folder / SERIES)[0]).name
    command = words(folder, keep=9)
    command[command.index("--resume") + 1] = str(again)
    run(*command)
    assert files_of(folder / "episodes") == files_of(recorded / "episodes")


def test_other_episodes_in_the_place_and_learners_that_play_nothing_are_refused(recorded, tmp_path, capsys):
    folder = tmp_path / "run"
    given = {"task": forks.NAME, "horizon": HORIZON, "out": folder / "episodes", "policies": "wait:1", "episodes": 2}
    more = {"num-envs": 2, "progress": "off"}
    run("generate", *(word for name, value in (given | more).items() for word in (f"--{name}", str(value))))
    capsys.readouterr()
    assert esper.__main__.main(words(folder)) == 2
    assert "holds other episodes than this run's" in capsys.readouterr().err
    assert Episodes.open(folder / "episodes").manifest.by_policy == {"wait": 2}
    assert esper.__main__.main(words(folder, algorithm="bc", dataset=recorded / "episodes")) == 2
    assert "--record" in capsys.readouterr().err


def test_a_run_that_fails_in_its_first_round_leaves_no_dataset(tiny_task, tmp_path):
    log = tmp_path / "log"
    assert forks.one_life(words(tmp_path / "run"), log, Fault("minibatch", "memory", 1)) > 0, log.read_text()
    assert not (tmp_path / "run" / "episodes").exists()
