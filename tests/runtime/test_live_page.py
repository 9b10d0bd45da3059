"""The live page in a real browser: every number on it is one of the files, it follows them, and it fits its window."""

import json
import math
import os
import shutil
import time
from importlib.util import find_spec

import pytest

from esper.runtime.live_server import LivePage
from esper.runtime.watch import live_runs
from esper.utils.documents import to_json

DEMANDED = os.environ.get("ESPER_SERVICES") == "1"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser():
    if not DEMANDED and not (CHROMIUM and DRIVER and find_spec("selenium")):
        pytest.skip("needs chromium, chromedriver and selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


STRETCHES = [["GERMINATED", 2, 2, "conv8x2"], ["TRAINING", 3, 6, "conv8x2"], ["CULLED", 7, 7, "conv8x2"]]


def row(number, scale=1.0):
    kinds = {
        "germinated/conv8x2": 4,
        "fossilized/conv8x2": 1,
        "culled/conv8x2": 2,
        "gained/conv8x2": 3,
        "gain/conv8x2": 1.25,
    }
    share = {"share_wait": 0.5, "share_germinate": 0.3, "share_cull": 0.2}
    times = {
        "seconds": 10.0,
        "collect_seconds": 7.0,
        "learn_seconds": 3.0,
        "host_seconds": 5.0,
        "validation_seconds": 1.0,
    }
    loss = 2 + 0.1 * math.sin(3 * number) if number != 12 else 9.0
    numbers = {
        "return": scale * (50 + math.sin(number)),
        "val_accuracy": 60.25 + number,
        "val_loss": loss,
        "entropy": 1 / number,
    }
    numbers |= {
        "kl": math.nan if number == 5 else 0.01,
        "seed_params": 1442.0 * number,
        "refused": 0.0,
        "rolled_back": 0.0,
    }
    return {"round": number, **numbers, **share, **times, **kinds, "memory_bytes": 3 << 20, "seed_success": 0.625}


def write_run(folder, rounds, scale=1.0):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"task": "digits", "seed": 7, "num_envs": 8, "rounds": 20}))
    costs = {"blueprint_costs": {"conv8x2": [1442, 10.896]}}
    (folder / "resolved.json").write_text(json.dumps({"digits": costs}))
    (folder / "metrics.jsonl").write_text("".join(to_json(row(n, scale)) + "\n" for n in range(1, rounds + 1)))
    env = {"accuracy": [[t, 10.0 + t] for t in range(1, 8)], "slots": [STRETCHES, [], STRETCHES[:2]]}
    lane = {"round": rounds, "task": "digits", "first": 0, "decisions": 25, "played": 7, "slots": ["a", "b", "c"]}
    (folder / "watch.jsonl").write_text(json.dumps(lane | {"envs": [env, env]}) + "\n")


@pytest.fixture
def runs(tmp_path):
    for name, scale in (("first", 1.0), ("second", 1.1)):
        write_run(tmp_path / name, 14, scale)
    page = LivePage(live_runs([tmp_path / "first", tmp_path / "second"]), 0)
    yield tmp_path, page
    page.close()


def opened(browser, page, rounds="14,14"):
    browser.get(page.url)
    wait(browser, f"return document.body.dataset.rounds === '{rounds}'")


def wait(browser, script):
    end = time.monotonic() + 15
    while not browser.execute_script(script):
        assert time.monotonic() < end, script
        time.sleep(0.05)


def cells(browser, place):
    script = f"return [...document.querySelectorAll('#{place} tr')].map(r => [...r.children].map(c => c.textContent))"
    return browser.execute_script(script)


def texts(browser, css):
    return browser.execute_script("return [...document.querySelectorAll(arguments[0])].map(n => n.textContent)", css)


def four_figures(value):
    """As the page writes a number, by Python's own rounding; an integer has all of its digits."""
    return value if float(value).is_integer() and abs(value) < 1e6 else float(f"{value:.4g}")


def test_the_numbers_on_the_page_are_those_of_the_files(browser, runs):
    folder, page = runs
    opened(browser, page)
    rows = [json.loads(line) for line in (folder / "first" / "metrics.jsonl").read_text().splitlines()]
    tiles = dict(
        browser.execute_script(
            "return [...document.querySelectorAll('[data-number]')].map(n => [n.dataset.number, n.textContent])"
        )
    )
    assert tiles["round"] == "14 of 20" and tiles["anomalies"] == "1"
    for name, unit in (
        ("return", 1),
        ("val_accuracy", 1),
        ("entropy", 1),
        ("seconds", 1),
        ("memory_bytes", 1 / 2**20),
        ("seed_success", 100),
    ):
        assert float(tiles[name]) == four_figures(rows[-1][name] * unit), name
    head, *body = cells(browser, "numbers")
    assert len(body) == len(rows)
    for told, wanted in zip(reversed(body), rows, strict=True):
        for name, text in zip(head[1:], told[1:], strict=True):
            value = wanted[name.replace(" ", "_")]
            assert text == "\u2013" if value is None else float(text) == four_figures(value), (name, text)
    assert cells(browser, "blueprints")[1] == ["conv8x2", "56", "14", "28", "33 %", "1.25", "1442", "\u00d710.90"]
    assert cells(browser, "anomalies")[1][:4] == ["12", "val_loss", "9", "high"]


def test_curves_are_the_series_and_gaps_are_gaps(browser, runs):
    folder, page = runs
    opened(browser, page)
    script = (
        "return [...document.querySelectorAll('#curves figure')].map(f => [f.querySelector('figcaption').textContent,"
        "[...f.querySelectorAll('path')].map(p => p.getAttribute('d'))])"
    )
    drawn = dict(browser.execute_script(script))
    assert len(drawn) == 6 and all(len(paths) == 2 for paths in drawn.values())  # two runs over each other
    for place, name in enumerate(("first", "second")):
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        points = [tuple(map(float, pair.split())) for pair in drawn["Return of an episode"][place][1:].split("L")]
        assert len(points) == len(rows)
        (x1, y1), (x2, y2) = points[0], points[3]
        scale = (y2 - y1) / (rows[3]["return"] - rows[0]["return"])
        for (x, y), each in zip(points, rows, strict=True):
            assert x == pytest.approx(x1 + (x2 - x1) / 3 * (each["round"] - 1), abs=0.03)
            assert y == pytest.approx(y1 + scale * (each["return"] - rows[0]["return"]), abs=0.2)
    assert [path.count("M") for path in drawn["Change of the policy by an update, nats"]] == [2, 2]


def test_lanes_are_the_stretches(browser, runs):
    _, page = runs
    opened(browser, page)
    assert texts(browser, "#lanes figcaption")[0] == "Round 14, digits, environment 0, 7 of 25 decisions so far"
    stages = browser.execute_script(
        "return [...document.querySelectorAll('#lanes figure:first-child [data-stage]')]"
        ".map(n => [n.dataset.stage, +n.getAttribute('width')])"
    )
    assert [stage for stage, _ in stages] == ["GERMINATED", "TRAINING", "CULLED", "GERMINATED", "TRAINING"]
    one = stages[0][1]
    assert [width / one for _, width in stages] == pytest.approx([1, 4, 1, 1, 4], rel=0.01)


def test_the_page_follows_the_run_tells_when_the_server_is_away_and_keeps_what_it_has(browser, runs):
    folder, page = runs
    opened(browser, page)
    write_run(folder / "first", 15)
    wait(browser, "return document.body.dataset.rounds === '15,14'")
    assert texts(browser, "[data-number=round]") == ["15 of 20"]
    shutil.copytree(folder / "first", folder / "copy")
    page.close()
    wait(browser, "return document.getElementById('state').className === 'lost'")
    assert texts(browser, "[data-number=round]") == ["15 of 20"]
    alone = LivePage(live_runs([folder / "copy"]), 0)  # of a directory that is only a copy
    opened(browser, alone, "15")
    assert texts(browser, "[data-number=round]") == ["15 of 20"]
    alone.close()


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_its_window_and_follows_the_colour_scheme(browser, runs, width, scheme, tmp_path):
    _, page = runs
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get_log("browser")  # of tests before
    opened(browser, page)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(14, 17, 22)"}[scheme]
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
    )
    assert min(height for height in sizes if height) > 10  # legible: nothing is scaled down
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    assert browser.get_log("browser") == []
