"""Libraries of every vector width, which tests can run in."""

from typing import NamedTuple

from esper.tezzeret import toolchain
from esper.tezzeret.native.library import library, pack

CACHES = (toolchain.load, library, pack)


class Build(NamedTuple):
    """How libraries are built: the instruction set, more flags, and the width that results."""

    isa: str
    flags: tuple[str, ...]
    pack: int


BUILDS = {
    "sse": Build("sse", (), 4),
    "neon": Build("neon", (), 4),
    "avx2": Build("avx2", (), 8),
    "avx512": Build("avx512", (), 16),
    "avx512's row": Build("", ("-DESPER_LANES=16", "-DESPER_REGISTERS=32", "-O1"), 16),
}
"""The last on any machine, slowly: vectors that are wider than its registers."""


def unload() -> None:
    for cache in CACHES:
        cache.cache_clear()
