"""The seven stages: names and order, what each says, where each fails, and that nothing of a failure is stored."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from esper.tezzeret.blueprints import canonical, infer, shipped
from esper.tezzeret.blueprints.site_words import pair_of
from esper.tezzeret.native.programs import Op
from esper.tezzeret.stages import (
    NAMES,
    STAGES,
    VALIDATION,
    BlueprintForm,
    CompileJob,
    ReadyBlueprint,
    StageReport,
    building,
    compile_document,
    fetch,
    unpack,
)
from esper.tezzeret.stages.native_form import form_of_code, from_bytes, native_form
from esper.tezzeret.stages.reports import as_table, from_table
from esper.tezzeret.stages.variants import VARIANTS, optimize, variants
from esper.urza.store import Tiers

Request = Callable[..., CompileJob]


def test_the_stages_by_their_names_and_in_their_order(store: Tiers, request_of: Request) -> None:
    told: list[StageReport] = []
    id, reports = compile_document(request_of("conv_light"), store, told=told.append)
    assert id is not None and [report.stage for report in reports] == list(NAMES) and told == list(reports)
    assert len(STAGES) == 7 and NAMES.index(VALIDATION) == 4
    assert all(report.passed and report.seconds >= 0 and report.reason == "" for report in reports)
    for number, report in enumerate((each for each in reports if each.stage in STAGES), 1):
        assert report.line.startswith(f"({number}) {report.stage}")
        assert re.search(r"\d+\.\d ms", report.line)
    assert from_table(json.loads(json.dumps(as_table(reports)))) == reports


def test_what_metadata_say(store: Tiers, request_of: Request) -> None:
    document = shipped()["conv_light"]
    id, _ = compile_document(request_of("conv_light", site="conv:4x6x5"), store)
    assert id is not None
    found = store.get(id, "blueprint")
    facts, (site, _) = unpack(found.data).facts, pair_of("conv:4x6x5")
    assert facts["parameters"] == infer(document, site, site).params == 9 * 16 + 8
    assert facts["input_shape"] == facts["output_shape"] == [4, 6, 5]
    assert facts["dtype"] == "float32" and facts["backend"] == "native" and facts["format"] == 1
    assert facts["device"]["device"] == "cpu" and facts["device"]["instruction_set"]
    assert facts["versions"]["torch"] == str(torch.__version__)
    assert facts["memory_bytes"] == 4 * facts["parameters"] and facts["flags"] and facts["created"].startswith("20")
    assert facts["profile"]["infer_ms"] <= facts["profile"]["infer_p95_ms"] and facts["profile"]["train_ratio"] > 0
    assert facts["choice"] == {"mode": "native program", "memory_format": "contiguous", "captured": False}
    assert found.facts["validated"] is True and found.facts["name"] == "conv_light"


def test_what_was_compiled_is_found_again(store: Tiers, request_of: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    id, _ = compile_document(request_of("lora"), store)
    other, _ = compile_document(request_of("lora", site="vector:8"), store)
    assert id is not None and other not in (None, id)
    monkeypatch.setattr(building, "form_of", lambda *arguments: pytest.fail("compiled again"))
    again, reports = compile_document(request_of("lora"), store)
    assert again == id and [report.stage for report in reports] == list(NAMES)
    assert all(report.facts == {"cached": id[:16]} for report in reports[2:])
    spaced = json.dumps(json.loads(canonical(shipped()["lora"])), indent=3).encode()
    assert compile_document(CompileJob(spaced, backend="native"), store)[0] == id, "one document in two spellings"


FAILING: dict[str, tuple[str, dict[str, str]]] = {
    "no JSON": (STAGES[0], {"document": "{"}),
    "an unknown dtype": (STAGES[0], {"dtype": "float16"}),
    "an unknown site": (STAGES[1], {"site": "token:8x8"}),
    "a dtype that the backend lacks": (STAGES[2], {"dtype": "float64"}),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_stage_that_fails_says_which_and_nothing_is_stored(name: str, store: Tiers, request_of: Request) -> None:
    stage, fields = FAILING[name]
    document = {"document": fields["document"].encode()} if "document" in fields else {}
    words = {key: value for key, value in fields.items() if key != "document"}
    id, reports = compile_document(request_of("conv_light", **words)._replace(**document), store)
    assert id is None and not reports[-1].passed and reports[-1].stage == stage
    assert [report.stage for report in reports] == list(NAMES[: NAMES.index(stage) + 1])
    assert "FAILED: " in reports[-1].line and "expected " in reports[-1].line and "\n" not in reports[-1].line
    assert store.list() == ()


def test_a_node_is_named(store: Tiers, request_of: Request) -> None:
    table = json.loads(canonical(shipped()["conv_light"]))
    table["cases"][0]["train"]["nodes"][0]["inputs"] = ["x", "norm.weight"]
    mixed = table["cases"][0]["train"]["nodes"][0]["name"]
    id, reports = compile_document(CompileJob(json.dumps(table).encode(), backend="native"), store)
    assert id is None and reports[-1].node == mixed and f"node {mixed!r}: " in reports[-1].line
    assert store.list() == ()


def test_an_artefact_that_is_not_what_it_should_be_is_not_stored(
    store: Tiers, request_of: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that the compiler gives is altered: a relu is missing in it."""

    def altered(backend, subject, dtype, device):
        train, infer = from_bytes(native_form(subject).code)
        told = tuple(i._replace(rectify=False) if i.op is Op.GROUP_NORM else i for i in infer.code.instructions)
        return form_of_code(subject, train, infer._replace(code=infer.code._replace(instructions=told)))

    monkeypatch.setattr(building, "form_of", altered)
    id, reports = compile_document(request_of("conv_light"), store)
    assert id is None and (reports[-1].stage, reports[-1].reason) == (VALIDATION, "wrong values")
    assert store.list() == ()


def test_auto_passes_over_what_cannot_run_it(store: Tiers, request_of: Request) -> None:
    """Tests' ``auto`` has no Inductor: float64 is for eager alone."""
    id, reports = compile_document(request_of("conv_light", backend="auto"), store)
    assert id is not None and reports[2].facts["backend"] == "native"
    id, reports = compile_document(request_of("conv_light", backend="auto", dtype="float64"), store)
    assert id is not None and unpack(store.get(id).data).facts["backend"] == "eager"
    assert reports[2].facts["backend"] == "eager"


def test_every_shipped_document_goes_through_on_native(request_of: Request) -> None:
    """Stages 1 to 6; what each costs is not this test's affair."""
    for name in ("token_attention", "gated_mlp", "conv8x2", "transformer16x1", "map8x1_pool1", "probe"):
        _, reports = compile_document(request_of(name), None)
        assert [report.stage for report in reports] == list(NAMES[:-1]) and reports[-1].passed, reports[-1].line


def test_the_fastest_way_is_chosen_and_of_equals_the_first() -> None:
    ways = VARIANTS["native", "cpu"]
    assert [way.backend for way in ways] == ["native", "eager"]
    assert optimize({ways[0]: 2.0, ways[1]: 1.0}) == ways[1] and optimize(dict.fromkeys(ways, 1.0)) == ways[0]
    assert variants("native", torch.device("cpu"), False) == ways[:1]
    assert variants("eager", torch.device("cpu"), True) == variants("eager", torch.device("cpu"), False) == ways[1:]


@pytest.mark.parametrize("fastest", ["native", "eager"])
def test_what_was_measured_chooses_and_the_choice_is_kept(
    fastest: str, store: Tiers, request_of: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked by name, a backend is the one that is taken, however slow."""
    plain = building.profile

    def profiled(form: BlueprintForm, *given: Any) -> dict[str, float]:
        return plain(form, *given) | {"train_ms": 1.0 if form.backend == fastest else 2.0}

    monkeypatch.setattr(building, "profile", profiled)
    id, reports = compile_document(request_of("conv_light", backend="auto", site="conv:3x4x4"), store)
    facts = unpack(store.get(id).data).facts
    assert facts["backend"] == fastest and facts["profile"]["train_ms"] == 1.0
    assert sorted(facts["ways"].values()) == [1.0, 2.0] and len(facts["ways"]) == 2
    assert facts["choice"]["mode"] == {"native": "native program", "eager": "operations one by one"}[fastest]
    assert reports[5].facts["way"] == f"{facts['choice']['mode']}, contiguous"
    found = fetch(store, id)
    assert isinstance(found, ReadyBlueprint) and found.form.backend == fastest
    id, _ = compile_document(request_of("conv_light", backend="native", site="conv:3x4x4"), store)
    assert list(unpack(store.get(id).data).facts["ways"]) == ["native program, contiguous"]
