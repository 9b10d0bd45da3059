"""The evaluation and inspection commands, and the report: what they say is what happened."""

import io
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import esper.__main__
from esper.leyline.actions import Op
from esper.runtime.evaluate import EvaluateSettings, evaluate
from esper.runtime.inspect import InspectSettings, inspect
from esper.runtime.report_evaluation import evaluation_section
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings

KEYS = ("test_accuracy", "val_accuracy", "utility", "total_reward", "added")
NUMBERS = {"engine": {"steps_per_epoch": 1}, "rewards": {"rent_weight": 10.0, "rent_cap": 90.0, "price": 7.0}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with numbers of its own: rent so high that a wrong reward shows."""
    folder = tmp_path_factory.mktemp("runs") / "<b>&run"
    small = {"features": 8, "lstm": 8, "minibatches": 2, "epochs": 1, "horizon": 7, "rounds": 2}
    small |= {"reward": "shaped"}
    train(TrainSettings(task="synthetic", num_envs=6, eval_envs=6, out=str(folder), **small, **NUMBERS), io.StringIO())
    return folder


@pytest.fixture(scope="module")
def asked(run):
    return EvaluateSettings(run=str(run), num_envs=6, grow="conv_light", json=True)


@pytest.fixture(scope="module")
def report(asked):
    out = io.StringIO()
    found = evaluate(asked, out)
    assert json.loads(out.getvalue()) == found
    return found


def without_seconds(policies):
    return {name: {key: value for key, value in row.items() if key != "seconds"} for name, row in policies.items()}


def test_evaluation_is_paired_and_repeatable(asked, report):
    policies = report["policies"]
    assert list(policies) == ["learned", "heuristic", "random", "wait", "grow conv_light"]
    assert policies["wait"]["added"]["mean"] == 0 and policies["wait"]["red_flags"] == []
    assert policies["wait"]["operations"]["WAIT"] == 1.0 and policies["wait"]["entropy_by_third"] == [0.0] * 3
    assert policies["wait"]["survival"]["count"] == 0 and policies["wait"]["calibration"] is None
    for other, row in report["first_minus"].items():
        for name, cell in row.items():
            expected = policies["learned"][name]["mean"] - policies[other][name]["mean"]
            assert cell["mean"] == pytest.approx(expected, abs=1e-4)
    assert without_seconds(evaluate(asked, io.StringIO())["policies"]) == without_seconds(policies)


def mean_rank(values, value):
    return sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2


def spearman(pairs):
    """The correlation of ranks, by the standard library."""
    return statistics.correlation(
        *([mean_rank(column, value) for value in column] for column in zip(*pairs, strict=True))
    )


def test_the_report_says_what_growing_is_for(report, asked):
    """J of every episode from what else the report holds of it, and how well the return ranks as J does."""
    pairs, means = [], []
    assert report["price"] == 7.0
    for row in report["policies"].values():
        columns = [row[name]["values"] for name in ("test_accuracy", "added", "utility", "total_reward")]
        for accuracy, added, worth, earned in zip(*columns, strict=True):
            assert worth == pytest.approx(accuracy - 7 * math.log(1 + added / report["host_params"]), abs=1e-4)
            pairs.append((worth, earned))
        means.append((row["utility"]["mean"], row["total_reward"]["mean"]))
    found = report["rank_correlation"]
    assert found["episodes"] == pytest.approx(spearman(pairs), abs=1e-9)
    assert found["policies"] == pytest.approx(spearman(means), abs=1e-9)
    out = io.StringIO()
    evaluate(replace(asked, json=False), out)
    assert f"J = test % - 7 ln(1 + added / {report['host_params']:,})" in out.getvalue()
    over = (f"{found[name]:.2f} over {name}" for name in ("episodes", "policies"))
    said = f"rank correlation of return and J: {', '.join(over)}"
    assert said in out.getvalue()
    page = evaluation_section(report)
    assert f"J = test % - 7 ln(1 + added / {report['host_params']:,}); {said}." in page


def test_evaluation_follows_the_run(run, asked, report):
    """The same horizon, engine and reward as at the end of training, unless asked otherwise."""
    trained = json.loads((run / "evaluation.json").read_text())
    for name, row in without_seconds(trained["policies"]).items():
        assert without_seconds(report["policies"])[name] == row
    assert report["data"] == trained["data"] and report["data"]["samples"]["test"] == 256
    assert (report["horizon"], report["engine"], report["rewards"]) == (7, NUMBERS["engine"], NUMBERS["rewards"])
    free = evaluate(replace(asked, grow="", rewards={"rent_weight": 0.0}), io.StringIO())["policies"]
    assert free["random"]["total_reward"]["mean"] > report["policies"]["random"]["total_reward"]["mean"] + 3
    assert free["random"]["test_accuracy"] == report["policies"]["random"]["test_accuracy"]
    other = replace(asked, grow="", task="digits", horizon=2, reward="sparse")
    assert other.rules(other.loaded()).engine == {} and other.rules(other.loaded()).gamma == 0.995


def test_growing_by_the_gradient_can_be_asked_for():
    """By evaluation and by inspection: the same episode."""
    few = {"task": "synthetic", "engine": {"steps_per_epoch": 1}, "horizon": 2}
    row = evaluate(EvaluateSettings(num_envs=6, gradient=True, **few), io.StringIO())["policies"]["gradient"]
    story = inspect(InspectSettings(policy="gradient", **few), io.StringIO())
    assert row["germinated"]["mean"] == 2 and row["operations"]["GERMINATE"] == 1
    assert all(step["action"].startswith("GERMINATE") for step in story["decisions"])


def test_several_runs_are_one_mean(run, asked, report, tmp_path):
    """The same run twice under two names: no resample differs from it."""
    again = shutil.copytree(run, tmp_path / "again")
    out = io.StringIO()
    found = evaluate(replace(asked, runs=str(again), policies="wait", grow="", json=False), out)
    assert list(found["policies"])[:3] == ["learned", f"learned {again}", "wait"] and report["runs"] is None
    assert found["runs"]["count"] == 2 and found["runs"]["policies"] == ["learned", f"learned {again}"]
    for name in KEYS:
        mean = found["policies"]["learned"][name]["mean"]
        assert list(found["runs"][name].values()) == pytest.approx([mean] * 3, rel=1e-6)
        assert found["policies"][f"learned {again}"][name] == report["policies"]["learned"][name]
    assert "2 runs: interquartile mean" in out.getvalue()
    assert esper.__main__.main(["evaluate", "--runs", f"{again},{again}"]) == 2


def test_the_best_policy_can_be_asked_for(run, asked):
    first = replace(asked, checkpoint="best")
    assert first.loaded().table["done"] <= replace(asked).loaded().table["done"] == 2
    assert esper.__main__.main(["evaluate", "--run", str(run), "--checkpoint", "worst"]) == 2


def test_the_table_shows_the_report(asked, report):
    out = io.StringIO()
    evaluate(replace(asked, json=False), out)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 130
    assert text.startswith("synthetic, 6 environments from seed 1, 7 decisions, reward shaped; mean ± 95 % half-width")
    assert "tested on 256 samples that nothing else reads; decisions saw 128 others; J = " in text
    for name, row in report["policies"].items():
        line = next(line for line in text.splitlines() if line.startswith(name))
        cells = re.findall(r"(-?[\d.]+) ± ([\d.]+)", line)
        assert [float(mean) for mean, _ in cells[:4]] == [round(row[key]["mean"], 1) for key in KEYS[:4]]
    learned = report["policies"]["learned"]
    mix = next(line for line in text.splitlines() if line.startswith("learned") and "±" not in line).split()[1:]
    assert [int(word) for word in mix[:18]] == [
        round(100 * third[op.name]) for op in list(Op)[:6] for third in learned["operations_by_third"]
    ]
    assert f"has slope {learned['calibration']['slope']:.2f} and" in text
    for words in ("paired differences, learned minus", "seeds germinated: %"):
        assert words in text
    flags = [flag for row in report["policies"].values() for flag in row["red_flags"]]
    assert ("red flags" in text) == bool(flags) and all(flag in text for flag in flags)


@pytest.fixture(scope="module")
def stories(run):
    """Six episodes of two policies, told one by one."""

    def told(policy):
        return [inspect(InspectSettings(run=str(run), policy=policy, env=env), io.StringIO()) for env in range(6)]

    return {policy: told(policy) for policy in ("learned", "random")}


@pytest.mark.parametrize("policy", ["learned", "random"])
def test_an_inspected_episode_is_the_evaluated_one(stories, report, policy):
    """Six episodes told one by one add up to what evaluation reports of their policy."""
    rewards = [sum(row["reward"] for row in story["decisions"]) for story in stories[policy]]
    assert sum(rewards) / 6 == pytest.approx(report["policies"][policy]["total_reward"]["mean"], rel=1e-4)
    for name in ("test_accuracy", "val_accuracy"):
        final = [story["end"][name] for story in stories[policy]]
        assert sum(final) / 6 == pytest.approx(report["policies"][policy][name]["mean"], rel=1e-4)
    assert all("test_accuracy" not in row["before"] for story in stories[policy] for row in story["decisions"])
    decisions = [row for story in stories[policy] for row in story["decisions"]]
    assert len(decisions) == 42 and all(row["refused"] is None for row in decisions)
    for op in Op:
        share = sum(row["action"].split()[0] == op.name for row in decisions) / 42
        assert share == pytest.approx(report["policies"][policy]["operations"][op.name])
    for row in decisions:
        assert sum(row["terms"].values()) == pytest.approx(row["reward"], abs=1e-4)
        diagnostics = row["diagnostics"]
        assert (diagnostics is None) == (policy != "learned")
        if diagnostics:
            assert all(other["action"] != row["action"] for other in diagnostics["alternatives"])
            chances = [other["probability"] for other in diagnostics["alternatives"]]
            assert chances == sorted(chances, reverse=True) and sum(chances) + diagnostics["probability"] <= 1 + 1e-5


def test_differences_are_paired(stories, report):
    """Means and intervals from twelve episodes played one by one; 2.5706 is Student's t for 5 degrees of freedom."""

    totals = {
        policy: [sum(row["reward"] for row in story["decisions"]) for story in told] for policy, told in stories.items()
    }
    gaps = [a - b for a, b in zip(totals["learned"], totals["random"], strict=True)]
    cell = report["first_minus"]["random"]["total_reward"]
    assert cell["mean"] == pytest.approx(statistics.mean(gaps), abs=1e-3)
    assert cell["half_width"] == pytest.approx(2.5706 * statistics.stdev(gaps) / 6**0.5, rel=2e-3)


def test_the_story_is_told_in_order(run):
    story = inspect(InspectSettings(run=str(run), env=1, json=True), out := io.StringIO())
    assert json.loads(out.getvalue()) == story
    out = io.StringIO()
    inspect(InspectSettings(run=str(run), env=1), out)
    text = out.getvalue()
    assert f"\npolicy of {run} after round 2\n" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("policy of")) <= 110
    assert text.startswith("synthetic, environment 1 of seed 1, learned, 7 decisions, reward shaped\n")
    blocks = text.split("\n\n")[1:]
    assert [block.split()[:2] for block in blocks[:-1]] == [["decision", str(t)] for t in range(1, 8)]
    for block, row in zip(blocks, story["decisions"], strict=False):
        assert f"chose    {row['action']}   (probability {row['diagnostics']['probability']:.2f}" in block
        assert f"reward   {row['reward']:+.2f}" in block
    assert (
        f"end           test {story['end']['test_accuracy']:.1f} %   loss {story['end']['test_loss']:.3f}" in blocks[-1]
    )
    assert f"return   {sum(row['reward'] for row in story['decisions']):+.2f}" in blocks[-1]


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m esper inspect --policy wait --horizon 2 --engine steps_per_epoch=1 | true"
    done = subprocess.run(["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_inspection_needs_a_run_for_its_policy(capsys):
    assert esper.__main__.main(["inspect", "--policy", "learned"]) == 2
    assert capsys.readouterr().err == "esper inspect: --policy learned: needs a run; expected --run DIRECTORY\n"
    assert esper.__main__.main(["inspect", "--run", "nowhere"]) == 2
    assert "no such file" in capsys.readouterr().err


class ReportPage(HTMLParser):
    """Tables by their caption, and everything that could reach the network."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.outside, self.figures, self.words = [], {}, [], 0, []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.outside += [
            (key, value) for key, value in attrs if key in ("src", "href", "srcset", "action", "xlink:href")
        ]
        self.outside += [(tag, "") for _ in range(tag in ("script", "link", "iframe", "object", "img", "base"))]
        self.figures += tag == "svg"
        if tag == "table":
            self.rows, self.caption = [], ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        self.words.append(data)
        if self.open[-1:] == ["caption"]:
            self.caption += data
        elif self.open[-1:] in (["th"], ["td"]):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(run):
    text = (run / "report.html").read_text()
    assert "url(" not in text and "@import" not in text and "//" not in text.replace("<!--", "")
    return ReportPage(text)


def test_the_report_stands_alone(page):
    assert page.outside == [] and page.figures >= 18


def test_the_reports_tables_are_the_evaluation(run, page):
    found = json.loads((run / "evaluation.json").read_text())
    for caption, part in (
        ("Mean ± 95 % half-width", "policies"),
        ("Paired differences ± 95 % half-width", "first_minus"),
    ):
        for (name, *cells), (wanted, row) in zip(page.tables[caption][1:], found[part].items(), strict=True):
            assert name == wanted
            for cell, key, near in zip(cells, KEYS, (0.0501, 0.0501, 0.0501, 0.0501, 0.501), strict=False):
                mean, half = map(float, cell.split(" ± "))
                assert mean == pytest.approx(row[key]["mean"], abs=near)
                assert half == pytest.approx(row[key]["half_width"], abs=near)
    (calibration,) = (rows for caption, rows in page.tables.items() if caption.startswith("Return-to-go on value"))
    groups = found["policies"]["learned"]["calibration"]["bins"]
    assert [float(row[2]) for row in calibration[1:]] == [round(group["predicted"], 2) for group in groups]
    (survived,) = (rows for caption, rows in page.tables.items() if caption.startswith("By policy:"))
    assert [int(row[1]) for row in survived[1:]] == [row["survival"]["count"] for row in found["policies"].values()]
    (kinds,) = (rows for caption, rows in page.tables.items() if caption.startswith("learned, by blueprint:"))
    assert sum(int(row[1]) for row in kinds[1:]) == found["policies"]["learned"]["survival"]["count"]


def test_the_reports_rounds_are_the_metrics(run, page):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shown = page.tables["Every round"]
    assert shown[0][:3] == ["round", "return", "val accuracy"] and len(shown) == 1 + len(rows)
    for line, row in zip(shown[1:], rows, strict=True):
        assert float(line[1]) == pytest.approx(row["return"], rel=1e-3)
    times = page.tables["All rounds; the first includes compilation"]
    assert sum(float(row[3]) for row in times[1:]) == pytest.approx(100, abs=0.2)
    assert Path(str(run)).name in "".join(page.words)
