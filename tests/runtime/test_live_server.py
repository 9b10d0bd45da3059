"""The live page's server and what it reads: this machine only, a fixed list of things, files that grow or are cut."""

import http.client
import json
import math
import socket
import time

import pytest

import esper.__main__
from esper.runtime.live_server import FILES, LivePage
from esper.runtime.live_view import LiveRun, RowReader
from esper.runtime.watch import live_runs
from esper.utils.documents import to_json


def row(number, **further):
    return {"round": number, "return": 1.5 * number, "val_loss": 2.0, "seconds": 60.0, **further}


def write_rows(path, rows):
    path.write_text("".join(to_json(each) + "\n" for each in rows))


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_rows(run / "metrics.jsonl", [row(n) for n in range(1, 5)])
    (run / "secret.txt").write_text("secret")
    return run


@pytest.fixture
def page(folder):
    page = LivePage(live_runs([folder]), 0)
    yield page
    page.close()


def asked(page, path, method="GET", host=None, **headers):
    port = page.server.server_address[1]
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    link.request(method, path, headers={"Host": host or f"127.0.0.1:{port}", **headers})
    answer = link.getresponse()
    body = answer.read()
    link.close()
    return answer.status, body, answer.headers


def test_only_this_machine_is_served_and_only_what_is_listed(page, folder):
    port = page.server.server_address[1]
    assert page.server.server_address[0] == "127.0.0.1"
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        "",
        f"127.0.0.1.evil:{port}",
    ):
        assert asked(page, "/runs.json", host=host or " ")[0] == 421, host
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert asked(page, "/runs.json", host=host)[0] == 200
    paths = (
        "/secret.txt",
        "/metrics.jsonl",
        "/../run/secret.txt",
        "/%2e%2e/run/secret.txt",
        "//etc/passwd",
        "/live",
        "/a" * 999,
    )
    assert {asked(page, path)[0] for path in paths} == {404}
    assert {asked(page, "/", method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")} == {501}
    assert asked(page, "/", "HEAD")[:2] == (200, b"")
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", "secret.txt"]  # nothing is written


def test_what_is_served_names_no_other_place(page):
    for path in FILES:
        status, body, headers = asked(page, path)
        assert (
            status == 200
            and b"https:" not in body
            and body.count(b"http:") == body.count(b"http://www.w3.org/2000/svg")
        )
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_what_did_not_change_is_not_sent_again(page, folder):
    _, _, headers = asked(page, "/runs.json")
    assert asked(page, "/runs.json", **{"If-None-Match": headers["ETag"]})[:2] == (304, b"")
    write_rows(folder / "metrics.jsonl", [row(n) for n in range(1, 6)])
    status, body, _ = asked(page, "/runs.json", **{"If-None-Match": headers["ETag"]})
    assert status == 200 and json.loads(body)["runs"][0]["rounds"] == 5


def test_a_browser_that_stays_does_not_hold_the_end_up_and_the_port_is_free_again(folder):
    page = LivePage(live_runs([folder]), 0)
    address = page.server.server_address
    with socket.create_connection(address) as idle:  # says nothing, ever
        assert asked(page, "/runs.json")[0] == 200  # and others are served
        start = time.monotonic()
        page.close()
        assert time.monotonic() - start < 3
        del idle
    again = LivePage(live_runs([folder]), address[1])
    assert asked(again, "/")[0] == 200
    again.close()


def test_a_file_that_grows_is_read_on_and_one_that_is_cut_or_replaced_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    reader = RowReader(path)
    reader.look()
    assert reader.rows == []
    write_rows(path, [row(1), row(2)])
    with path.open("a") as file:
        file.write('{"round": 3, "ret')
    reader.look()
    assert [each["round"] for each in reader.rows] == [1, 2] and reader.version == 0
    with path.open("a") as file:
        file.write('urn": 7.0}\nno json\n[]\n{"round": 4, "return": null, "kl": "inf"}\n')
    reader.look()
    assert [each["return"] for each in reader.rows[:3]] == [1.5, 3.0, 7.0]
    assert math.isnan(reader.rows[3]["return"]) and reader.rows[3]["kl"] == math.inf and reader.version == 0
    path.write_text(path.read_text()[: len(to_json(row(1))) + 1])  # cut
    reader.look()
    assert [each["round"] for each in reader.rows] == [1] and reader.version == 1
    other = to_json(row(1)).replace("1.5", "9.5")
    path.write_text(other + "\n" + to_json(row(2)) + "\n")  # the same length and more, other contents
    reader.look()
    assert [each["return"] for each in reader.rows] == [9.5, 3.0] and reader.version == 2
    path.unlink()
    reader.look()
    assert reader.rows == [] and reader.version == 3


def test_a_directory_of_which_little_can_be_read_is_shown_all_the_same(tmp_path):
    view = LiveRun(tmp_path, "run").view()
    assert view["rounds"] == 0 and view["story"] == [{"topic": "learned", "text": "No round was finished."}]
    for name in ("config.json", "resolved.json", "watch.jsonl", "seeds.jsonl"):
        (tmp_path / name).write_bytes(b'\xff{"round": [\n[]\n{}\n')
    write_rows(tmp_path / "metrics.jsonl", [row(1, kl=math.nan)])
    view = LiveRun(tmp_path, "run").view()
    assert view["rounds"] == 1 and view["rows"][0]["kl"] is None and view["lanes"] == []
    json.dumps(view, allow_nan=False)


def test_the_command_says_what_is_wrong_in_a_line(tmp_path, capsys, folder):
    assert esper.__main__.main(["watch", str(tmp_path / "none")]) == 2
    assert "no run is there" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert esper.__main__.main(["watch", str(folder), "--port", str(port)]) == 2
    assert f"--port {port}" in capsys.readouterr().err
    assert esper.__main__.main(["watch", str(folder), "--port", "0", "--seconds", "0.1"]) == 0
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_a_run_is_shown_once(capsys, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert esper.__main__.main(["watch", str(folder), f"./{folder.name}"]) == 2
    assert capsys.readouterr().err == f"esper watch: watch {folder.name}: named twice; expected every run once\n"


@pytest.mark.parametrize("seconds", ["nan", "-1"])
def test_a_time_that_is_none_is_refused(seconds, capsys, folder):
    assert esper.__main__.main(["watch", str(folder), "--port", "0", "--seconds", seconds]) == 2
    assert capsys.readouterr().err == f"esper watch: --seconds {seconds}: expected a number from 0\n"
