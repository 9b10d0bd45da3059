"""Fetching: the same bits in another process; typed failures; nothing that was tampered with is loaded."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import esper
from esper.kasmina.conv_blueprints import CONV_LIGHT
from esper.tezzeret.blueprints import blueprint_of, canonical, parse, shipped
from esper.tezzeret.stages import (
    CompileJob,
    ReadyBlueprint,
    admission,
    compile_document,
    document_of,
    fetch,
    fetching,
)
from esper.urza.store import Failure, StoreSettings, Tiers, open_store

FETCH = """
import sys, torch
from esper.runtime.blueprint_demo import digest_of
from esper.tezzeret.stages import fetch
from esper.urza.store import StoreSettings, open_store
torch.set_num_threads(1)
with open_store(StoreSettings(folder=sys.argv[1])) as store:
    ready = fetch(store, sys.argv[2])
print(ready.cached, digest_of(ready))
"""


def test_a_fresh_process_computes_the_same_bits(store: Tiers, request_of, tmp_path: Path) -> None:
    from esper.runtime.blueprint_demo import digest_of

    id, _ = compile_document(request_of("conv_heavy", site="conv:4x4x4"), store)
    assert id is not None
    ready = fetch(store, id)
    assert isinstance(ready, ReadyBlueprint)
    done = subprocess.run([sys.executable, "-c", FETCH, str(tmp_path / "store"), id], capture_output=True, check=True)
    assert done.stdout.decode().split() == ["True", digest_of(ready)]


def test_what_cannot_be_had_says_why(store: Tiers, request_of) -> None:
    id, _ = compile_document(request_of("lora"), store)
    assert id is not None
    good = store.get(id)
    about = {"kind": "blueprint", "name": "lora", "validated": True}
    no_package = store.put(b"no package at all", about)
    unproven = store.put(good.data + b" ", about | {"validated": False})
    library = store.put(b"\\x7fELF", about | {"kind": "code"})
    found = {each: fetch(store, each) for each in ("0" * 64, "../etc/passwd", no_package, unproven, library)}
    assert all(isinstance(each, Failure) for each in found.values())
    reasons = [each.reason for each in found.values()]
    assert reasons == ["unknown", "unknown", "foreign", "unvalidated", "foreign"]
    assert isinstance(fetch(store, id), ReadyBlueprint)


@pytest.fixture
def compiled(request_of, tmp_path: Path) -> tuple[str, Path]:
    folder = tmp_path / "store"
    with open_store(StoreSettings(folder=str(folder))) as store:
        id, _ = compile_document(request_of("lora"), store)
        assert id is not None
        return id, folder


def test_a_tampered_package_is_refused_before_it_is_read(
    compiled: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    id, folder = compiled
    (path,) = (each for each in folder.rglob(f"*{id[2:]}*") if each.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(fetching, "unpack", lambda *arguments: pytest.fail("it was read"))
    with open_store(StoreSettings(folder=str(folder))) as store:
        found = fetch(store, id)
    assert isinstance(found, Failure) and found.reason == "damaged"


def test_tampered_code_is_not_loaded_but_compiled_again(
    compiled: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    id, folder = compiled
    with open_store(StoreSettings(folder=str(folder))) as store:
        (entry,) = store.list(kind="code")
        assert isinstance(fetch(store, id), ReadyBlueprint)
    (path,) = (each for each in folder.rglob(f"*{entry.id[2:]}*") if each.is_file())
    path.write_bytes(b"[" + path.read_bytes()[1:-1] + b" ")
    monkeypatch.setattr(fetching, "form_of_code", lambda *arguments: pytest.fail("it was loaded"))
    with open_store(StoreSettings(folder=str(folder))) as store:
        ready = fetch(store, id)
    assert isinstance(ready, ReadyBlueprint) and not ready.cached


def test_code_of_another_machine_is_not_loaded(compiled: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    id, folder = compiled
    monkeypatch.setattr(fetching, "key_text", lambda *arguments: "another")
    monkeypatch.setattr(fetching, "form_of_code", lambda *arguments: pytest.fail("it was loaded"))
    with open_store(StoreSettings(folder=str(folder))) as store:
        ready = fetch(store, id)
        assert isinstance(ready, ReadyBlueprint) and not ready.cached
        assert fetch(store, id) is ready, "kept in memory"


def test_an_engine_takes_it_and_says_what_is_wrong_with_another(store: Tiers, request_of, small_task) -> None:
    id, _ = compile_document(request_of("conv_light"), store)
    assert id is not None
    ready = fetch(store, id)
    assert isinstance(ready, ReadyBlueprint) and document_of(ready.blueprint) == shipped()["conv_light"]
    engine = esper.make(small_task._replace(blueprints=(ready.blueprint,)), 2, backend="native")
    twin = esper.make(small_task._replace(blueprints=(CONV_LIGHT,)), 2, backend="native")
    wait = torch.zeros(2, dtype=torch.int64)
    for one, other in zip(
        *(each.step(each.init(0), wait)[0].values(True, True) for each in (engine, twin)), strict=True
    ):
        assert torch.equal(one, other)
    table = json.loads(canonical(shipped()["conv_light"])) | {"identity_bound": 0.001}
    wrong = blueprint_of(parse(json.dumps(table).encode(), "wrong"))
    with pytest.raises(esper.ConfigError, match=r"blueprint 'conv_light' in slot 0: contract: .*expected <= 0.00101"):
        esper.make(small_task._replace(blueprints=(wrong,)), 2)


def test_what_was_admitted_is_not_validated_again(small_task, monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_task._replace(blueprints=(blueprint_of(shipped()["conv_small"]),))
    esper.make(task, 2, backend="native")
    monkeypatch.setattr(admission, "validate", lambda *arguments: pytest.fail("validated again"))
    esper.make(task, 3, backend="native")


def test_ids_are_digests(store: Tiers, request_of) -> None:
    id, _ = compile_document(request_of("probe"), store)
    assert id == hashlib.sha256(store.get(str(id)).data).hexdigest()
    assert isinstance(request_of("probe"), CompileJob)
