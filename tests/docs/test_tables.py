"""Tables and diagrams of documents against the package: experimental features, figures, citation, workflow, stages."""

import re
from dataclasses import MISSING, fields

import torch
from docs_texts import DOCUMENTS, FOLDER, PACKAGE, REPOSITORY, blocks, name_of, prose, text_of

import esper
from esper.leyline.config import Config
from esper.leyline.hypers import numbers
from esper.leyline.stages import TRANSITIONS, Cause, Stage
from esper.runtime.rollout import rollout
from esper.runtime.train_settings import TrainSettings
from esper.simic.reward_terms import RewardParams
from esper.simic.rewards import TERMS
from esper.tamiyo.policies import Decision, Policy
from esper.tezzeret.surgery import SurgeryRules

FIGURE = re.compile(r"\d[\d,]*\.\d+|\d{2,}[\d,]*")


def rows_of(path, heading):
    """Cells of the table below a line of headings."""
    table = text_of(path).partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


def default_of(setting):
    """What a setting is if nobody asks: of the training command, of ``--engine``, of a class by its name."""
    if setting.startswith("--engine "):
        return {entry.name: entry.default for entry in fields(Config)}[setting.split()[1]]
    if setting.startswith("--"):
        name = setting[2:].replace("-", "_")
        entry = next(entry for entry in fields(TrainSettings) if entry.name == name)
        return entry.default if entry.default is not MISSING else entry.default_factory()
    name, _, attribute = setting.partition(".")
    assert name == SurgeryRules.__name__
    return SurgeryRules._field_defaults[attribute]


def test_experimental_features_have_the_defaults_that_the_table_says():
    rows = rows_of(FOLDER / "experimental.md", "feature | setting | default | why it is experimental")
    for _, setting, default, _ in rows:
        assert str(default_of(setting.strip("`"))) == ("" if default == "none" else default.strip("`")), setting
    assert len(rows) >= 14


def test_every_figure_of_the_tuning_guide_is_recorded():
    """In the README, the laboratory book or a recorded result."""
    books = [
        REPOSITORY / "README.md",
        *(REPOSITORY / "bench").glob("*.md"),
        *(REPOSITORY / "bench").rglob("results/*.md"),
    ]
    recorded = set(FIGURE.findall(" ".join(map(text_of, books))))
    tables = "\n".join(
        line for line in prose(FOLDER / "tuning.md").splitlines() if line.startswith("|") and "--" not in line
    )
    figures = FIGURE.findall(re.sub(r"`[^`]*`", "", tables))
    assert len(figures) > 70
    assert not [figure for figure in figures if figure not in recorded]


def test_every_table_of_figures_has_a_command():
    for section in re.split(r"^## ", text_of(FOLDER / "tuning.md"), flags=re.M)[1:]:
        if " ± " in section:
            assert re.search(r"`(esper|python -m) ?[\w.]", section), section.partition("\n")[0]


def test_the_citation_is_of_this_version():
    lines = dict(
        line.split(": ", 1) for line in text_of(PACKAGE / "CITATION.cff").splitlines() if re.match(r"\w.*: ", line)
    )
    assert lines["version"] == esper.__version__ and lines["license"] == "MIT"
    assert lines["cff-version"] == "1.2.0" and {"message", "title"} <= set(lines)
    assert "- name:" in text_of(PACKAGE / "CITATION.cff")


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", text_of(PACKAGE / "CHANGELOG.md"), re.M)
    assert versions[0] == esper.__version__


def test_the_workflow_runs_everything_on_the_pythons_that_are_supported():
    text = text_of(REPOSITORY / ".github" / "workflows" / "ci.yml")
    assert re.findall(r'"(3\.\d+)"', text) == ["3.11", "3.12", "3.13"]
    assert (REPOSITORY / ".ci" / "run").exists() and "run: .ci/run\n" in text
    assert "workflow_dispatch" in text and "python -m bench.gpu" in text and (REPOSITORY / "bench" / "gpu.py").exists()


def test_the_glossary_knows_every_package_and_the_diagram_every_stage():
    named = set(re.findall(r"^\| `esper/(\w+)` \|", text_of(FOLDER / "glossary.md"), re.M))
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages - {"kernels"} == named
    drawn = set(re.findall(r"\b[A-Z]{6,}\b", "".join(blocks(FOLDER / "architecture.md", "mermaid"))))
    assert {stage.name for stage in Stage} - {"UNKNOWN"} <= drawn


def test_the_diagram_of_the_life_cycle_has_the_table_s_transitions():
    """But for the start, and CHANGE_BLUEPRINT, which the sentence below it tells."""
    drawn = re.findall(r"^    ([A-Z]+) --> ([A-Z]+)", "".join(blocks(FOLDER / "architecture.md", "mermaid")), re.M)
    edges = [edge for edge in TRANSITIONS if not {*edge.causes} <= {Cause.INIT, Cause.CHANGE_BLUEPRINT}]
    legal = {(edge.source.name, edge.target.name) for edge in edges}
    assert set(drawn) == legal


def test_diagrams_are_three_kinds_at_least():
    kinds = {body.split()[0] for body in blocks(FOLDER / "architecture.md", "mermaid")}
    assert kinds == {"flowchart", "sequenceDiagram", "stateDiagram-v2"}
    assert {"## Context", "## Containers", "## One step"} <= set(text_of(FOLDER / "architecture.md").splitlines())


def test_lines_are_short_but_for_tables_and_no_code_goes_over_two():
    for path in DOCUMENTS:
        for line in prose(path).splitlines():
            assert len(line) <= 120 or line.startswith("|"), f"{name_of(path)}: {line}"
            assert line.count("`") % 2 == 0, f"{name_of(path)}: {line}"


def test_every_term_and_number_of_the_rewards_is_in_their_table():
    """As the code has them; what reads a number is found by asking every term what it asks for."""
    terms = rows_of(FOLDER / "rewards.md", "term | modes | what it pays")
    assert terms == [[f"`{name}`", ", ".join(m.value for m in term.modes), term.doc] for name, term in TERMS.items()]
    rows = rows_of(FOLDER / "rewards.md", "number | default | unit | from, to | read by | source")
    told = {row[0].strip("`"): row[1:] for row in rows}
    for name, number in numbers(RewardParams).items():
        default, unit, bounds, _, source = told.pop(name)
        assert (default, unit, source) == (f"{number.default:g}", number.unit, number.source)
        assert bounds == f"{number.low:g}, {number.high:g}"
    assert not told


def test_every_number_of_the_rewards_says_what_reads_it():
    rows = rows_of(FOLDER / "rewards.md", "number | default | unit | from, to | read by | source")
    read = numbers_read()
    for row in rows:
        assert row[4] == ", ".join(f"`{term}`" for term, names in read.items() if row[0].strip("`") in names), row[0]


def numbers_read():
    """What the terms ask for in a step, and in one at the horizon."""
    engine, found = esper.make("synthetic", 2, backend="eager", horizon=1, steps_per_epoch=1), {}

    class Noted:
        def __init__(self, params):
            self.params, self.asked = params, set()

        def __getattr__(self, name):
            self.asked.add(name)
            return self.params.get(name)

    def paid(step):
        for name, term in TERMS.items():
            noted = Noted(step.params)
            term.value(step._replace(params=noted))
            found[name] = noted.asked
        return {"none": torch.zeros(2)}

    policy = Policy("wait", lambda envs: None, lambda memory, seen: (None, Decision(torch.zeros(2, dtype=torch.int64))))
    rollout(engine, policy, 0, paid)
    return found
