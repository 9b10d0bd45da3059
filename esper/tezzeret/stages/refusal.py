"""Why a compiled blueprint is refused."""

from esper.leyline.config import ConfigError

REASONS = (
    "shape",
    "not finite",
    "wrong values",
    "wrong gradients",
    "blocked gradient",
    "dependent rows",
    "identity bound",
    "slow",
    "leak",
    "failing",
    "contract",
)
"""One for everything that is looked at."""


class ArtefactRefused(ConfigError):
    """A compiled blueprint that is not what it should be; one line.

    Attributes:
      reason: of ``REASONS``.
      expected: what is allowed.
    """

    def __init__(self, reason: str, found: str, expected: str) -> None:
        super().__init__(f"{reason}: {found}; expected {expected}")
        self.reason, self.expected = reason, expected


def require(holds: bool, reason: str, found: str, expected: str) -> None:
    """Nothing, where it holds.

    Raises:
      ArtefactRefused: it does not.
    """
    if not holds:
        raise ArtefactRefused(reason, found, expected)
