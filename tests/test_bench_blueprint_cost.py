"""bench.blueprint_cost at tiny sizes: every kind of row, and that what is compared is equal."""

import torch

from esper.tezzeret.blueprints import shipped


def test_rows_of_every_kind(bench_module, tmp_path):
    bench = bench_module("blueprint_cost")
    words = ["--envs", "2", "--steps", "1", "--batch", "4", "--repeat", "1", "--out", str(tmp_path)]
    found = bench.main([*words, "--only", "conv_small,conv4x2,lora,probe,transformer16x1,norm"])
    rows = {(row["site"], row["blueprint"]) for row in found["rows"]}
    assert rows >= {
        ("conv", "conv_small"),
        ("conv", "conv4x2"),
        ("token", "lora"),
        ("vector", "lora"),
        ("vector", "probe"),
    }
    assert ("token", "transformer16x1") in rows and {("conv", "norm"), ("token", "norm"), ("vector", "norm")} <= rows
    assert all(row["python"] > 0 and row["block"] > 0 for row in found["rows"])
    assert (tmp_path / "blueprint_cost.md").read_text().count("\n|") == 2 + len(found["rows"])


def test_every_document_has_a_row(bench_module):
    bench, known = bench_module("blueprint_cost"), shipped()
    missing = {document.name for document in known.values()}
    for where, place in bench.places().items():
        for kind in (*place.kinds, *place.bypasses):
            assert bench.document_of(kind, where).name == kind.name
            missing.discard(kind.name)
    assert not missing


def test_the_layers_in_the_host_are_the_slot_s(bench_module):
    """A host with the block computes what the host with a fossilized seed of the same numbers does."""
    bench = bench_module("blueprint_cost")
    place = bench.places()["conv"]
    kind, site = place.kinds[4], place.host.points["block0"]
    whole = bench.inserted(place.host, kind)
    assert whole.num_params == place.host.num_params + kind.layout(site).size
    x, row = torch.ones(2, 3, *site.shape), torch.full((2, kind.layout(site).size), 0.1)
    named = kind.layout(site).views(row)
    assert torch.equal(whole.blocks[1].infer(named, {}, x), kind.infer(named, {}, x))
    bypass = place.bypasses[0]
    assert bench.alone(place, bypass).num_params == bypass.layout(*map(place.host.points.get, ("input", "logits"))).size
