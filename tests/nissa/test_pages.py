"""Markup, frames, charts and swimlanes: what is drawn lies where the numbers say, and no text breaks out."""

import math
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.actions import NONE, Op
from esper.leyline.stages import STAGES, Stage
from esper.nissa import page
from esper.nissa.charts import (
    Interval,
    Series,
    identity_chart,
    interval_chart,
    line_chart,
    smooth,
    stacked_chart,
)
from esper.nissa.frame import Axis, span, ticks
from esper.nissa.markup import Markup, element, join
from esper.nissa.seeds import lives
from esper.nissa.swimlanes import SHOWN, swimlanes
from esper.nissa.trace import Trace


class Reader(HTMLParser):
    """All elements with their attributes, and the text; complains of tags that do not match."""

    def __init__(self, document):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.words = [], [], []
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **wanted):
        return [a for t, a in self.found if t == tag and all(wanted[k] in a.get(k, "").split() for k in wanted)]


@given(st.text(), st.text())
def test_text_and_attributes_come_back_as_they_were(words, attribute):
    words = words.replace("\r", " ").replace("\x00", " ")  # what a parser of HTML normalises
    attribute = attribute.replace("\r", " ").replace("\x00", " ")
    found = Reader(element("p", words, title=attribute))
    assert "".join(found.words) == words and found.found == [("p", {"title": attribute})]


def test_markup_is_not_escaped_twice_and_text_is():
    assert element("p", Markup("<b>x</b>"), "<i>") == "<p><b>x</b>&lt;i&gt;</p>"
    assert join("a&b", element("br")) == "a&amp;b<br>"
    assert (
        element("rect", stroke_width=1.5, class_="a", x=2.0, fill=None)
        == '<rect stroke-width="1.5" class="a" x="2"></rect>'
    )


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 12), st.booleans())
def test_ticks_are_round_and_inside(low, width, about, whole):
    axis = Axis("", low, low + width)
    if not axis.low < axis.high or width < 1e-9 * abs(low):
        return
    found = ticks(axis, about, whole)
    slack = 1e-8 * (abs(low) + width + whole)
    assert all(low - slack <= value <= axis.high + slack for value in found)
    steps = [b - a for a, b in pairwise(found)]
    if steps:
        step = sum(steps) / len(steps)
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(mantissa - round_) for round_ in (1, 2, 5, 10)) < 1e-3
        assert not whole or step >= 0.999
    assert len(found) <= 2.6 * about + 2


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.lists(st.sampled_from([0.0, 1.0]), max_size=2))
def test_an_axis_shows_everything(values, include):
    axis = span("", [*values, math.nan], include)
    assert axis.low < axis.high and all(axis.low <= value <= axis.high for value in [*values, *include])


def test_smoothing():
    found = smooth([1.0, 3.0, 5.0, 7.0], 3)
    assert all(map(math.isnan, found[:2])) and found[2:] == [3.0, 5.0]


def points(words):
    return [tuple(map(float, pair.split(","))) for pair in words.split()]


def test_lines_rise_where_numbers_do_and_break_where_they_are_not_finite():
    chart = Reader(line_chart("t", "round", "nats", [Series("a", [0.0, 1.0, math.nan, 3.0])]))
    (path,) = chart.all("path")
    strokes = [stroke.split("L") for stroke in path["d"].split("M")[1:]]
    assert [len(stroke) for stroke in strokes] == [2, 1]
    (x1, y1), (x2, y2) = (tuple(map(float, point.split())) for point in strokes[0])
    (x4, y4) = map(float, strokes[1][0].split())
    assert x4 - x1 == pytest.approx(3 * (x2 - x1), abs=0.05) and y1 - y4 == pytest.approx(3 * (y1 - y2), abs=0.05)
    assert len(chart.all("circle")) == 1  # the lone point is a dot


def test_stacked_areas_fill_the_whole():
    chart = Reader(stacked_chart("t", "decision", "%", [Series("a", [25.0, 50.0]), Series("b", [75.0, 50.0])], 100.0))
    low, high = (points(area["points"]) for area in chart.all("polygon"))
    top, bottom = min(y for _, y in high), max(y for _, y in low)
    assert low[0][1] == pytest.approx(bottom - 0.25 * (bottom - top), abs=0.02)
    assert low[2][1] == pytest.approx(bottom - 0.5 * (bottom - top), abs=0.02)
    assert {y for _, y in high[:4]} == {top}
    assert low[:4] == high[:3:-1]  # the upper area stands on the lower one


def test_interval_whiskers_have_the_width_of_the_interval():
    chart = Reader(interval_chart("t", "pp", [Interval("a", 10.0, 2.0), Interval("b", 14.0, 1.0)], mark=10.0))
    wide, narrow = (
        float(w["x2"]) - float(w["x1"]) for w in chart.all("line", **{"class": "whisker"}) if w["y1"] == w["y2"]
    )
    first, second = (float(dot["cx"]) for dot in chart.all("circle"))
    assert wide == pytest.approx(2 * narrow, abs=0.05) and second - first == pytest.approx(wide, abs=0.05)
    (mark,) = chart.all("line", **{"class": "mark"})
    assert float(mark["x1"]) == pytest.approx(first, abs=0.02)


def test_agreement_lies_on_the_line():
    chart = Reader(identity_chart("t", "x", "y", [(-1.0, -1.0, None), (3.0, 3.0, 0.5), (1.0, 2.0, None)]))
    (line,) = chart.all("line", **{"class": "mark"})
    x1, y1, x2, y2 = (float(line[name]) for name in ("x1", "y1", "x2", "y2"))
    offsets = [y1 + (float(dot["cx"]) - x1) / (x2 - x1) * (y2 - y1) - float(dot["cy"]) for dot in chart.all("circle")]
    assert offsets[:2] == pytest.approx([0.0, 0.0], abs=0.05) and offsets[2] > 5


def episode():
    """Six decisions, two slots, written by hand: a seed that fossilizes and one that is culled and replaced."""
    s, pair, triple = Stage, (6, 1), (6, 1, 2)
    during = torch.tensor(
        [
            [s.GERMINATED, s.DORMANT],
            [s.TRAINING, s.GERMINATED],
            [s.TRAINING, s.CULLED],
            [s.BLENDING, s.EMBARGOED],
            [s.PROBATIONARY, s.DORMANT],
            [s.FOSSILIZED, s.GERMINATED],
        ]
    ).unsqueeze(1)
    op = [Op.GERMINATE, Op.GERMINATE, Op.CULL, Op.WAIT, Op.WAIT, Op.GERMINATE]
    flat = {name: torch.zeros(pair) for name in ("action", "blend", "refusal", "failed", "verdict", "loss", "reward")}
    return Trace(
        **flat,
        op=torch.tensor(op).unsqueeze(1),
        slot=torch.tensor([0, 1, 1, NONE, NONE, 1]).unsqueeze(1),
        kind=torch.tensor([0, 1, NONE, NONE, NONE, 0]).unsqueeze(1),
        rolled_back=torch.zeros(pair, dtype=torch.bool),
        during=during,
        stage=during.roll(-1, 0),
        blueprint=torch.zeros(triple),
        alpha=torch.zeros(triple),
        effect=torch.zeros(triple),
        effect_error=torch.zeros(triple),
        accuracy=torch.tensor([[10.0], [20.0], [30.0], [20.0], [40.0], [50.0]]),
        terms=torch.zeros(6, 1, 1),
        term_names=("x",),
        diagnostics=None,
    )


def test_swimlanes_show_what_was_written_by_hand():
    trace = episode()
    drawn = Reader(swimlanes(trace, lives(trace), 0, ("<wide>", "thin"), "An episode"))
    lanes = drawn.all("rect", **{"class": "lane"})
    blocks = drawn.all("rect", **{"class": "stage"})
    left, width = float(lanes[0]["x"]), float(lanes[0]["width"])
    one = width / 6
    found = [
        (
            lanes.index(next(lane for lane in lanes if lane["y"] == block["y"])),
            block["class"].split()[1].removeprefix("s-"),
            round((float(block["x"]) - left) / one, 2),
            round(float(block["width"]) / one, 2),
        )
        for block in blocks
    ]
    assert found == [
        (0, "germinated", 0.0, 1.0),
        (0, "training", 1.0, 2.0),
        (0, "blending", 3.0, 1.0),
        (0, "probationary", 4.0, 1.0),
        (0, "fossilized", 5.0, 1.0),
        (1, "germinated", 1.0, 1.0),
        (1, "culled", 2.0, 1.0),
        (1, "embargoed", 3.0, 1.0),
        (1, "germinated", 5.0, 1.0),
    ]
    names = [(round((float(a["x"]) - 2 - left) / one, 2), a["y"]) for a in drawn.all("text", **{"class": "seed"})]
    assert [x for x, _ in names] == [0.0, 1.0, 5.0] and names[1][1] == names[2][1] != names[0][1]
    assert [word for word in drawn.words if word in ("<wide>", "thin")] == ["<wide>", "thin", "<wide>"]
    (curve,) = drawn.all("polyline")
    heights = [-y for _, y in points(curve["points"])]
    assert heights[1] - heights[0] == pytest.approx((heights[5] - heights[0]) / 4, abs=0.02)
    assert "slot 0: TRAINING, decisions 2 to 3" in drawn.words


def test_the_style_knows_every_colour_that_is_used():
    style = page.page("x").partition("<style>")[2].partition("</style>")[0]
    for stage in SHOWN:
        name, colour = stage.name.lower(), STAGES[stage].colour
        assert f".s-{name} {{" in style and f"--{name}: {colour.light};" in style
        assert f".on-{name} {{ fill: {colour.letter}; }}" in style
    for index in range(8):
        assert f".area.c{index}," in style and f".line.c{index}" in style


def test_a_page_is_whole_and_escaped():
    heads = ("<head>", "b")
    parts = (page.table(heads, [("a&b", "<td>")], "cap"), page.legend([("c0", "<x>")]), page.bullets(["<y>"]))
    reader = Reader(page.page("<title>", page.section("<h>", *parts), page.tiles([("a", "<b>", "c")])))
    assert [tag for tag, _ in reader.found][:2] == ["html", "head"]
    for words in ("<title>", "<h>", "<head>", "a&b", "<td>", "<x>", "<y>", "<b>"):
        assert words in reader.words
