"""Garbage, addresses of services, and what messages may say."""

import importlib.util
import os
import stat
import sys
import threading
import time

import pytest

from esper.urza.store import Artefact, Damage, StoreError, StoreSettings, collect, from_environment, open_store, verify
from esper.urza.store.addresses import secrets_of, shown_address, told
from esper.urza.store.upkeep import GRACE

GOOD = {"kind": "program", "name": "conv", "version": "1", "validated": True}

PLACES = ("memory", "directory", "all")


@pytest.mark.parametrize("kind", PLACES)
def test_collects_what_has_no_row_and_is_older_than_the_grace_period(opened, kind):
    store = opened(kind)
    kept, gone = store.put(b"kept", GOOD), store.put(b"gone!", GOOD)
    store.delete(gone)
    assert collect(store)[:3] == (0, 0, 1) == collect(store, now=time.time() + GRACE - 60)[:3]
    assert collect(store, now=time.time() + GRACE + 60)[:3] == (1, 5, 0)
    store.ready.drop()
    assert store.get(kept).data == b"kept" and not list(verify(store)) and not store.objects.exists(gone)
    assert store.put(b"gone!", GOOD) == gone and store.get(gone).data == b"gone!"


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_a_put_renews_the_age_of_an_object(opened, kind):
    store = opened(kind)
    id = store.put(b"abc", GOOD)
    store.delete(id)
    if kind == "directory":
        path = store.objects.folder / id[:2] / id
        os.utime(path, (1, 1))
        assert store.objects.stored(id).written == 1
        store.put(b"abc", GOOD)
        assert time.time() - store.objects.stored(id).written < 60
    assert collect(store, grace=60.0)[0] == 0


def test_puts_and_collections_at_the_same_time_lose_nothing(opened, settings_of):
    settings = settings_of("directory")
    first, second, ended = opened(settings), opened(settings), threading.Event()

    def work():
        while not ended.is_set():
            collect(second, grace=-1.0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(25):
            data = bytes([number % 3])
            id = first.put(data, GOOD)
            first.ready.drop()
            assert first.get(id) == Artefact(id, data, GOOD)
            first.delete(id)
    finally:
        ended.set()
        thread.join(30)


def test_leftovers_of_killed_writers_go_with_the_garbage(opened):
    store = opened("directory")
    id = store.put(b"abc", GOOD)
    folder = store.objects.folder / id[:2]
    (folder / f"{id}.tmp-0123456789ab").write_bytes(b"half")
    (folder / "notes.txt").write_bytes(b"somebody else's")
    assert collect(store, grace=60.0) == (0, 0, 0, 0) and collect(store, grace=-60.0) == (0, 0, 0, 1)
    assert sorted(path.name for path in folder.iterdir()) == [id, "notes.txt"]


def test_objects_are_for_their_owner_alone(opened):
    store = opened("directory")
    id = store.put(b"abc", GOOD)
    mode = (store.objects.folder / id[:2] / id).stat().st_mode
    assert os.name != "posix" or stat.S_IMODE(mode) == 0o600


def test_a_link_in_the_place_of_an_object_is_not_followed(opened, tmp_path):
    store = opened("directory")
    id = store.put(b"abc", GOOD)
    path = store.objects.folder / id[:2] / id
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    store.ready.drop()
    assert store.get(id).reason == "damaged"
    assert store.put(b"abc", GOOD) == id and not path.is_symlink() and store.get(id).data == b"abc"


def test_verify_names_every_damage(opened):
    store = opened("memory")
    first, second = store.put(b"first", GOOD), store.put(b"second", GOOD)
    store.objects.remove(first)
    with store.entries.connections.writing() as execute:
        execute("UPDATE artefacts SET size = 7 WHERE id = :id", id=second)
    assert set(verify(store)) == {
        Damage(first, "objects", f"{first}: its object is not there", False),
        Damage(second, "database", f"'{second[:59]}...: its entry does not match its seal", False),
    }


ADDRESSES = {
    "redis://user:geheim@h:1/0": "redis://h:1/0",
    "postgresql://u:ge%20heim@h/n?password=geheim&sslmode=require": "postgresql://h/n?password=***&sslmode=***",
    "s3://b/p?secret_access_key=geheim&region=r": "s3://b/p?secret_access_key=***&region=***",
    "sqlite:////tmp/x": "sqlite:////tmp/x",
    "x://a:geheim@[/\n": "x://[/\\n",
}


def test_no_message_has_a_secret():
    for address, shown in ADDRESSES.items():
        assert shown_address(address) == shown
        for secret in secrets_of(address):
            text = told(ConnectionError(f"{address} and {secret}\nfailed"), address)
            assert "geheim" not in text and "ge heim" not in text and "\n" not in text, text
    assert "require" not in secrets_of("postgresql://h/n?sslmode=require")


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("redis", "http://u:geheim@h"),
        ("sql", "mysql://u:geheim@h/n"),
        ("sql", "geheim"),
        ("objects", "ftp://u:geheim@h"),
        ("objects", "s3://?secret=geheim"),
        ("objects", "s3://b/p?nonsense_geheim=geheim"),
        ("folder", "/proc/nowhere"),
        ("folder", "a\0b"),
    ],
)
def test_an_address_that_is_none_is_one_line(name, address, tmp_path):
    needed = {"redis": "redis", "sql": "sqlalchemy", "objects": "obstore"}.get(name, "sys")
    if importlib.util.find_spec(needed) is None:
        return
    with pytest.raises(StoreError, match="expected") as error:
        open_store(StoreSettings(**({"folder": str(tmp_path)} | {name: address})))
    assert "\n" not in str(error.value) and "=geheim" not in str(error.value) and ":geheim" not in str(error.value)


@pytest.mark.parametrize(
    ("package", "settings"),
    [("redis", {"redis": "redis://h"}), ("sqlalchemy", {"sql": "sqlite:///x"}), ("obstore", {"objects": "s3://b"})],
)
def test_a_package_that_is_not_there_is_one_line(monkeypatch, tmp_path, package, settings):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StoreError, match=rf"needs {package}; pip install 'esper-growth\[store\]'$"):
        open_store(StoreSettings(folder=str(tmp_path), **settings))


def test_services_that_are_not_there_say_so_without_secrets(opened, tmp_path):
    for package in ("sqlalchemy", "psycopg", "redis", "obstore"):
        if importlib.util.find_spec(package) is None:
            return
    places = {
        "redis": "redis://:geheim@127.0.0.1:1/0",
        "sql": "postgresql://u:geheim@127.0.0.1:1/n",
        "objects": "s3://b?endpoint=http://127.0.0.1:1&region=r&access_key_id=k&secret_access_key=geheim",
    }
    store = opened(StoreSettings(folder=str(tmp_path), **places))
    id = store.put(b"abc", GOOD)
    assert store.get(id).data == b"abc" and store.exists(id) and [each.id for each in store.list()] == [id]
    found = store.get("0" * 64)
    assert found.reason == "unavailable" and "geheim" not in found.detail
    assert store.postponed.flush() == 1 and store.metrics()["outbox"]["waiting"] == 1
    assert b"geheim" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_settings_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ESPER_STORE_FOLDER", str(tmp_path))
    monkeypatch.setenv("ESPER_STORE_SQL", "sqlite:///x")
    assert from_environment() == StoreSettings(folder=str(tmp_path), sql="sqlite:///x")
