"""Pages: one self-contained HTML file; style and pictures inside, no script, no network."""

from collections.abc import Sequence
from pathlib import Path

from esper.leyline.stages import STAGES
from esper.nissa.markup import Markup, element


def stage_style() -> str:
    """The stages' colours as CSS: ``s-NAME`` colours a block or a swatch, ``on-NAME`` a letter on it."""
    shown = {stage.name.lower(): row.colour for stage, row in STAGES.items() if row.colour}
    light = "".join(f" --{name}: {colour.light};" for name, colour in shown.items())
    dark = "".join(f" --{name}: {colour.dark};" for name, colour in shown.items() if colour.dark)
    rules = [f":root {{{light} }}", f"@media (prefers-color-scheme: dark) {{ :root {{{dark} }} }}"]
    rules += [f".s-{name} {{ fill: var(--{name}); background: var(--{name}); }}" for name in shown]
    rules += [f"svg .on-{name} {{ fill: {colour.letter}; }}" for name, colour in shown.items()]
    return "\n".join([*rules, ""])


def page(title: str, *sections: Markup) -> str:
    """A whole document."""
    style = Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8") + stage_style())
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    return "<!DOCTYPE html>\n" + element("html", head, element("body", element("main", *sections)), lang="en") + "\n"


def section(title: str, *parts: str) -> Markup:
    """A heading and what belongs to it."""
    return element("section", element("h2", title), *parts)


def paragraph(*parts: str, kind: str | None = None) -> Markup:
    """A paragraph."""
    return element("p", *parts, class_=kind)


def figure(title: str, chart: Markup, legend: Markup | None = None, below: Markup | None = None) -> Markup:
    """A chart with its caption, its legend above and its numbers below."""
    parts = (element("figcaption", title), legend or Markup(""), chart, below or Markup(""))
    return element("figure", *parts)


def figures(*parts: Markup) -> Markup:
    """Figures side by side, as many as fit."""
    return element("div", *parts, class_="figures")


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """What the colours mean: (class, words)."""
    items = [element("li", element("span", class_=f"swatch {kind}"), words) for kind, words in entries]
    return element("ul", *items, class_="legend")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Markup:
    """A table whose first column names its rows."""
    top = element("thead", element("tr", *(element("th", head, scope="col") for head in heads)))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    whole = element("table", element("caption", caption), top, element("tbody", *body))
    return element("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)


def details(summary: str, *parts: Markup) -> Markup:
    """Something to be opened."""
    return element("details", element("summary", summary), *parts)


def tiles(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """Headline figures: (what, value, remark)."""
    boxes = [
        element("div", element("span", what), element("strong", value), element("small", remark), class_="tile")
        for what, value, remark in entries
    ]
    return element("div", *boxes, class_="tiles")


def bullets(items: Sequence[str], kind: str | None = None) -> Markup:
    """A list."""
    return element("ul", *(element("li", item) for item in items), class_=kind)


def header(title: str, *remarks: str) -> Markup:
    """The page's heading."""
    return element("header", element("h1", title), *(paragraph(remark) for remark in remarks))
