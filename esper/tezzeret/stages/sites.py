"""Sites as people write them: ``conv:8x8x8``, ``token:16x32``, ``vector:64``, or two with a comma for a bypass."""

from collections.abc import Callable

from esper.kasmina.site import Site, conv_site, token_site, vector_site
from esper.leyline.config import ConfigError
from esper.utils.documents import shown

MOST = 1 << 20
"""Of a size."""


def _tokens(length: int) -> Site:
    return Site("tokens", (length,), 0)


def _logits(*shape: int) -> Site:
    return Site("logits", shape, len(shape) - 1, 0 if len(shape) == 2 else None)


KINDS: dict[str, tuple[tuple[int, ...], Callable[..., Site]]] = {
    "conv": ((3,), conv_site),
    "token": ((2,), token_site),
    "vector": ((1,), vector_site),
    "tokens": ((1,), _tokens),
    "logits": ((1, 2), _logits),
}
"""By kind: how many sizes, and the site."""

FORMS = "conv:8x8x8 (channels, height, width), token:16x32 (length, channels), vector:64, or input and target of a "
FORMS += "bypass such as conv:1x8x8,logits:10 or tokens:16,logits:16x27"
"""For help."""


def sites_of(text: str, place: str = "--site") -> tuple[Site, Site | None]:
    """A site, or the two of a bypass.

    Raises:
      ConfigError: it names none; one line.
    """
    words = text.split(",")
    if not 1 <= len(words) <= 2:
        raise ConfigError(f"{place} = {shown(text)}: expected {FORMS}")
    found = [_site(word.strip(), text, place) for word in words]
    return found[0], found[1] if len(found) > 1 else None


def _site(word: str, text: str, place: str) -> Site:
    kind, _, sizes = word.partition(":")
    counts, make = KINDS.get(kind, ((), _logits))
    shape = sizes.split("x")
    sound = len(shape) in counts and all(part.isascii() and part.isdigit() and len(part) < 8 for part in shape)
    numbers = [int(part) for part in shape] if sound else [0]
    if not all(0 < number <= MOST for number in numbers):
        raise ConfigError(f"{place} = {shown(text)}: expected {FORMS}")
    return make(*numbers)


def site_text(source: Site, target: Site | None = None) -> str:
    """What ``sites_of`` reads."""
    words = [f"{site.kind}:{'x'.join(map(str, site.shape))}" for site in (source, target) if site is not None]
    return ",".join(words)


USUAL = (
    "conv:8x8x8",
    "token:16x32",
    "vector:32",
    "conv:1x8x8,logits:10",
    "conv:8x8x8,logits:10",
    "tokens:16,logits:16x27",
    "token:16x32,logits:16x27",
    "vector:32,logits:10",
    "conv:1x8x8,conv:4x8x8",
    "conv:1x8x8,conv:4x4x4",
    "conv:1x8x8,conv:4x2x2",
)
"""Sites that documents are compiled for where nobody asks for another; the first that fits counts."""
