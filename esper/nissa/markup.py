"""Markup: HTML and SVG elements as strings in which every text and attribute is escaped."""

from html import escape

VOID = frozenset({"meta", "br", "img"})
"""Elements without an end tag."""


class Markup(str):
    """Finished markup; any other string is text and will be escaped."""

    __slots__ = ()


def element(tag: str, *children: "str | Markup", **attributes: str | float | None) -> Markup:
    """One element.

    Args:
      tag: its name.
      *children: markup as it is, other strings escaped.
      **attributes: ``stroke_width`` is written ``stroke-width``, ``class_`` is ``class``; None leaves one out; numbers
        are written with at most two decimals.
    """
    words = "".join(f' {_name(key)}="{_text(value)}"' for key, value in attributes.items() if value is not None)
    return Markup(f"<{tag}{words}>") if tag in VOID else Markup(f"<{tag}{words}>{join(*children)}</{tag}>")


def join(*parts: "str | Markup") -> Markup:
    """Parts side by side; strings that are not markup are escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part, quote=False) for part in parts))


def plain(value: float) -> str:
    """A coordinate: at most two decimals, no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _text(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else plain(value)
