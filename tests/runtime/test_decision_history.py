"""A policy that sees what was decided: it trains, is stored, goes on and plays; others meet it with one line."""

import pytest
import torch
from runtime_forks import result, words

import esper.__main__
from esper.runtime.policy_checkpoint import load_run

pytestmark = pytest.mark.usefixtures("tiny_task")

SEEING = ["--engine", "decision_history=2"]


def run(*command):
    return esper.__main__.main([*map(str, command)])


@pytest.fixture(scope="module")
def seeing(tiny_task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "seeing"
    assert run(*words(folder, 3), *SEEING) == 0
    return folder


@pytest.fixture(scope="module")
def blind(tiny_task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "blind"
    assert run(*words(folder, 1)) == 0
    return folder


def test_it_learns_and_goes_on_to_the_same_bits(seeing, tmp_path):
    """The weights that read the decisions moved, and a run that was cut in two ends as one that was not."""
    folder = tmp_path / "halved"
    for rounds in (1, 3):
        assert run(*words(folder, rounds), *SEEING) == 0
    assert result(folder) == result(seeing)
    columns = load_run(seeing).table["interface"]["columns"]
    places = [place for place, name in enumerate(columns) if name.startswith("decision[")]
    assert len(places) == 2 * (6 + 1 + 1)
    first = tmp_path / "first"
    assert run(*words(first, 1), *SEEING) == 0
    changed = [
        name
        for name, value in load_run(seeing).tensors.items()
        if value.dim() == 2
        and value.shape[1] == len(columns)
        and name.startswith("policy.")
        and not torch.equal(value[:, places], load_run(first).tensors[name][:, places])
    ]
    assert changed


def test_it_plays_where_it_sees_and_is_refused_in_one_line_elsewhere(seeing, blind, capsys):
    assert run("inspect", "--run", seeing) == 0
    capsys.readouterr()
    for folder, shown, told in ((seeing, 0, 2), (blind, 3, 0)):
        assert run("inspect", "--run", folder, "--engine", f"decision_history={shown}") == 2
        said = capsys.readouterr().err
        assert said == (
            f"esper inspect: policy of tiny: sees the last {told} decisions, and the task shows {shown}; "
            f"expected --engine decision_history={told}\n"
        )


def test_a_run_of_another_observation_is_no_beginning(blind, tmp_path, capsys):
    words_of = [word for word in words(tmp_path / "new", 1) if word not in ("--resume", "auto")]
    assert run(*words_of, *SEEING, "--start-from", blind) == 2
    said = capsys.readouterr().err
    assert "which sees or says something else" in said and said.count("\n") == 1
    assert run(*words_of, *SEEING, "--policy-network", "graph") == 2
    said = capsys.readouterr().err
    assert "--engine decision_history=2: a policy of --policy-network graph sees no decisions; expected 0" in said
    assert said.count("\n") == 1 and not (tmp_path / "new").exists()
