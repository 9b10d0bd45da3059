"""Sites in words, as commands take them: ``conv:8x8x8``, ``token:16x32``, ``conv:1x8x8->logits:10``."""

import re

from esper.kasmina.site import Site, conv_site, token_site, vector_site
from esper.leyline.config import ConfigError
from esper.tezzeret.blueprints.costs import infer
from esper.tezzeret.blueprints.document import RANKS, Document
from esper.tezzeret.blueprints.refusals import LIMITS, DocumentError, DocumentLimits
from esper.utils.documents import shown

SITE = re.compile(r"(?P<kind>[a-z]+):(?P<shape>[0-9]{1,7}(?:x[0-9]{1,7})*)")

STANDARD = (
    *("conv:8x8x8", "token:16x32", "vector:32"),
    *("conv:1x8x8->logits:10", "vector:32->logits:10", "tokens:16->logits:16x32", "token:16x32->logits:16x32"),
    *("conv:8x8x8->conv:16x8x8", "conv:8x8x8->conv:16x4x4", "conv:8x8x8->conv:16x2x2", "conv:8x8x8->vector:16"),
)
"""Sites at which a document is looked at if nobody says where."""

Pair = tuple[Site, Site]


def site_of(text: str) -> Site:
    """One site.

    Raises:
      ConfigError: no such kind, or another number of axes; one line.
    """
    match = SITE.fullmatch(text.strip())
    kind, shape = (match["kind"], tuple(map(int, match["shape"].split("x")))) if match else ("", ())
    if kind not in RANKS or len(shape) not in RANKS[kind] or min(shape) < 1:
        allowed = "conv:CxHxW, token:TxD, vector:D, tokens:T, logits:C or logits:TxC"
        raise ConfigError(f"site {shown(text)}: expected {allowed}, sizes from 1")
    if kind == "conv":
        return conv_site(*shape)
    if kind == "token":
        return token_site(*shape)
    if kind == "vector":
        return vector_site(*shape)
    return Site(kind, shape, len(shape) - 1, 0 if kind == "logits" and len(shape) == 2 else None)


def pair_of(text: str) -> Pair:
    """Source and target; without an arrow one site is both.

    Raises:
      ConfigError: see ``site_of``.
    """
    source, arrow, target = text.partition("->")
    return site_of(source), site_of(target if arrow else source)


def words_of(source: Site, target: Site) -> str:
    """Two sites as ``pair_of`` reads them."""
    words = [f"{site.kind}:{'x'.join(map(str, site.shape))}" for site in (source, target)]
    return words[0] if source == target else "->".join(words)


def pair_for(document: Document, limits: DocumentLimits = LIMITS) -> Pair:
    """The first standard pair of sites that a document is for.

    Raises:
      DocumentError: it is for none of them, or is wrong at the first that its conditions allow.
    """
    last: DocumentError | None = None
    for pair in map(pair_of, STANDARD):
        if document.bypass == (pair[0] != pair[1]):
            try:
                infer(document, *pair, limits)
            except DocumentError as error:
                last = last if last and not last.found.startswith("no case") else error
            else:
                return pair
    assert last is not None
    raise last
