"""Real services for the store's tests, started from installed packages: redis-server, PostgreSQL, moto's S3 server."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import pytest

from esper.urza.store import StoreSettings, memory_store, open_store

DEMANDED = os.environ.get("ESPER_SERVICES") == "1"
"""Whether a service that is not there is a failure."""

PACKAGES = ("sqlalchemy", "psycopg", "redis", "obstore", "moto", "flask")

KINDS = ("memory", "directory", "sqlite", "redis", "postgres", "all")
"""Stores of one contract: in memory, embedded, SQLite by SQLAlchemy, with Redis, with PostgreSQL, all services."""


def postgres_program(name):
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    return None if found is None else str(found)


def lacking():
    """What the services need and is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    missing += [] if shutil.which("redis-server") else ["redis-server"]
    return missing + ([] if postgres_program("initdb") else ["postgresql"])


def expect_services():
    missing = lacking()
    if missing:
        (pytest.fail if DEMANDED else pytest.skip)(f"real services: lacks {', '.join(missing)}")


def await_true(asked, seconds=15.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if asked():
                return
        time.sleep(0.02)
    raise AssertionError(f"not so within {seconds} s")


class RedisServer:
    def __init__(self, folder):
        self.folder, self.url = folder, f"unix://{folder / 's'}"
        self.start()

    def start(self):
        words = [shutil.which("redis-server"), "--port", "0", "--unixsocket", str(self.folder / "s"), "--save", ""]
        self.process = subprocess.Popen([*words, "--dir", str(self.folder)], stdout=subprocess.DEVNULL)
        await_true(lambda: self.client().ping())

    def client(self):
        import redis

        return redis.Redis.from_url(self.url)

    def stop(self):
        self.process.kill()
        self.process.wait(10)
        (self.folder / "s").unlink(missing_ok=True)


class PostgresServer:
    """One cluster on a socket; it refuses to run as root, so that it then runs as the user ``postgres``."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="esper-pg-", dir="/tmp"))
        self.words = ["setpriv", "--pdeathsig", "QUIT"]  # a test that is killed leaves no server behind
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self.words += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        facts = ["-D", f"{self.folder}/data", "-U", "esper", "-A", "trust", "-N", "-E", "UTF8"]
        words = [*self.words, postgres_program("initdb"), *facts]
        subprocess.run(words, check=True, capture_output=True, cwd="/")
        self.start()

    def start(self):
        options = ["listen_addresses=", "fsync=off", "max_connections=200", "shared_buffers=16MB"]
        words = [postgres_program("postgres"), "-D", f"{self.folder}/data", "-k", str(self.folder)]
        words += [word for option in options for word in ("-c", option)]
        self.process = subprocess.Popen(
            [*self.words, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        await_true(lambda: self.connect().close() is None, 30)

    def connect(self):
        import psycopg

        return psycopg.connect(f"host={self.folder} user=esper dbname=postgres", autocommit=True)

    def stop(self):
        """At once, as in a crash."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(20)

    def url(self, name):
        return f"postgresql://esper:geheim@/{name}?host={self.folder}"

    def database(self):
        """The address of a database of its own."""
        name = f"t{uuid.uuid4().hex[:12]}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def close(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy:
    """A port before another one, which can be closed and opened: for a server that would forget what it holds."""

    def __init__(self, target):
        self.target, self.port, self.open = target, free_port(), []
        self.start()

    def start(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self.open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self.carry, args=pair, daemon=True).start()

    def carry(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def stop(self):
        for each in (self.listener, *self.open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.open = []


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class BucketServer:
    """moto's S3 server behind a proxy."""

    def __init__(self):
        port = free_port()
        words = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await_true(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, 60)
        self.proxy = Proxy(port)
        self.start, self.stop = self.proxy.start, self.proxy.stop
        self.create()

    def address(self, prefix):
        keys = "access_key_id=key&secret_access_key=geheim"
        return f"s3://esper/{prefix}?endpoint=http://127.0.0.1:{self.proxy.port}&region=us-east-1&{keys}"

    def create(self):
        """The one bucket."""
        import urllib.request

        request = urllib.request.Request(f"http://127.0.0.1:{self.proxy.port}/esper", method="PUT")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200

    def close(self):
        self.stop()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture(scope="session")
def soon():
    """Wait until something is so."""
    return await_true


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    expect_services()
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server():
    expect_services()
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def bucket_server():
    expect_services()
    server = BucketServer()
    yield server
    server.close()


@pytest.fixture
def settings_of(request, tmp_path):
    """Settings of a new and empty store of a kind; a second store of the same settings shares what it holds."""

    def make(kind, folder=None):
        folder = folder or tmp_path / uuid.uuid4().hex[:8]
        folder.mkdir(parents=True, exist_ok=True)
        found = {"folder": str(folder)}
        if kind == "sqlite":
            pytest.importorskip("sqlalchemy")
            found["sql"] = f"sqlite:///{folder}/by_address.sqlite"
        if kind in ("redis", "shared", "all"):
            found["redis"] = request.getfixturevalue("redis_server").url
        if kind in ("postgres", "shared", "all"):
            found["sql"] = request.getfixturevalue("postgres_server").database()
        if kind == "all":
            found["objects"] = request.getfixturevalue("bucket_server").address(folder.name)
        return StoreSettings(**found)

    return make


@pytest.fixture
def opened(settings_of):
    """Open a store of a kind, or of settings; all are closed in the end."""
    with contextlib.ExitStack() as stack:

        def open_one(kind):
            if kind == "memory":
                return stack.enter_context(memory_store())
            settings = kind if isinstance(kind, StoreSettings) else settings_of(kind)
            return stack.enter_context(open_store(settings))

        yield open_one


@pytest.fixture(params=KINDS)
def store(request, opened):
    """An empty store of every kind."""
    return opened(request.param)
