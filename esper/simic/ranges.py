"""What is allowed of a learner's numbers: one check for all of them."""

from collections.abc import Collection, Mapping

from esper.leyline.config import ConfigError
from esper.utils.documents import figure


def expect_in_ranges(
    place: str, numbers: object, ranges: Mapping[str, tuple[float, float]], whole: Collection[str] = ()
) -> None:
    """Raise unless every number is in its range.

    Args:
      place: what the numbers are of, for the message.
      numbers: has them as attributes.
      ranges: name -> lowest and highest allowed value; NaN is in none.
      whole: names of those that are integers.

    Raises:
      ConfigError: one is not; one line.
    """
    for name, (low, high) in ranges.items():
        value, kind = getattr(numbers, name), int if name in whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            number = "an integer from" if name in whole else "a number from"
            raise ConfigError(f"{place}.{name} = {value!r}: expected {number} {figure(low)} to {figure(high)}")
