"""Health checks and what the doctor says of them."""

import io
import os

import pytest

import esper.__main__
from esper.runtime import health
from esper.runtime.doctor import DoctorSettings, diagnose
from esper.runtime.health import HealthCheck, Unhealthy, checks, examine
from esper.tezzeret import compiler
from esper.urza import lock
from esper.utils import failpoints
from esper.utils.resilience.breaker import Breaker, Limits, Phase


def found(folder, name):
    return next(each for each in examine(each for each in checks(folder) if each.name == name))


def test_a_sound_machine(tmp_path):
    findings = examine(checks(tmp_path / "runs" / "a"))
    assert {each.name for each in findings} >= {"free disk", "run directory", "cache", "compiles", "device cpu"}
    assert all(each.well and not each.remedy for each in findings if each.name != "compiles")
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_comes_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "LEAST_FREE", 10**18)
    _, well, what, remedy = found(tmp_path, "free disk")
    assert not well and what.endswith("expected at least 1000000000000 MB") and "free some space" in remedy
    with failpoints.awaiting(failpoints.Fault("sync", "eio")):
        *_, what, remedy = found(tmp_path, "run directory")
    assert "Input/output error" in what and "dmesg" in remedy and list(tmp_path.iterdir()) == []


def test_a_store_on_a_network_file_system_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPER_STORE_FOLDER", str(tmp_path / "store"))
    assert found(tmp_path, "store")[1:] == (True, str(tmp_path), "")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/home {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(health, "network_of", lambda folder: lock.network_of(folder, str(mounts)))
    _, well, what, remedy = found(tmp_path, "store")
    assert not well and f"{tmp_path} is on a network file system (nfs4)" in what and "ESPER_STORE_SQL" in remedy
    monkeypatch.setenv("ESPER_STORE_SQL", "postgresql://host/name")
    _, well, what, _ = found(tmp_path, "store")
    assert well and what.endswith("on a network file system (nfs4), its database elsewhere")


@pytest.mark.skipif(os.name != "posix", reason="programs that are scripts")
def test_a_compiler_that_fails(tmp_path, monkeypatch):
    program = tmp_path / "c++"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "no room" >&2; exit 1; }\n')
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    _, well, what, remedy = found(tmp_path, "compiles")
    assert not well and what == f"{program}: no room" and "install g++" in remedy


@pytest.mark.skipif(os.name != "posix", reason="programs that are scripts")
def test_a_compiler_that_is_killed_is_tried_again(tmp_path, monkeypatch):
    """And one that fails by itself is not; a third failure in a row opens its breaker."""
    service = compiler.service
    for body, calls in (("kill -9 $$", 3), ("exit 1", 1)):
        program = tmp_path / f"c{calls}"
        program.write_text(f'#!/bin/sh\necho x >> "$0.calls"\n{body}\n')
        program.chmod(0o755)
        monkeypatch.setattr(
            service(str(program)), "_world", service(str(program))._world._replace(sleep=lambda s: None)
        )
        with pytest.raises(Exception, match=r"died with|non-zero exit"):
            compiler.run_compiler([str(program)])
        assert (tmp_path / f"c{calls}.calls").read_text().count("x") == calls
        assert (service(str(program)).breaker.circuit.phase is Phase.OPEN) == (calls == 3)


def test_checks_feed_the_breaker_of_their_service():
    asked = []

    def look():
        asked.append(1)
        raise Unhealthy("no answer")

    breakers = {"registry": Breaker("registry", Limits(failures=2))}
    table = [HealthCheck("registry", "registry", look, "start it")] * 4
    findings = examine(table, breakers)
    assert len(asked) == 2 and breakers["registry"].circuit.phase is Phase.OPEN
    assert [each.found for each in findings[:2]] == ["no answer"] * 2 and findings[0].remedy == "start it"
    assert all("registry: left alone after 2 failures" in each.found for each in findings[2:])


def test_the_doctor_shows_health_and_the_failures_of_a_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("esper.runtime.doctor.CHOICES", ("auto", "eager"))
    log = tmp_path / "log"
    log.write_text("round 1\nOSError: [Errno 28] No space left on device\n")
    out = io.StringIO()
    facts = diagnose(DoctorSettings(out=str(tmp_path / "runs"), log=str(log)), out)
    assert facts["health"]["run directory"] == f"{tmp_path} can be written"
    assert f"run directory: {tmp_path} can be written\n" in out.getvalue()
    assert "disk full, once: line 2: OSError: [Errno 28]" in out.getvalue() and "  remedy: free" in out.getvalue()
    assert esper.__main__.main(["doctor", "--log", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.endswith("No such file or directory; expected a file that can be read\n")
