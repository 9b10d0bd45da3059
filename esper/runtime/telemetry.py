"""The command that lists what runs measure."""

from collections.abc import Sequence
from textwrap import fill

from esper.nissa.profiles import MEASURES, PROFILES, profile_table
from esper.utils.settings import Parser
from esper.utils.terminal import output

COLUMNS = 120


def telemetry(words: Sequence[str]) -> int:
    """List the profiles of ``esper train --telemetry PROFILE``, and what each number of them decides and costs.

    Args:
      words: none.

    Raises:
      SettingsError: there are some.
    """
    text = f"What runs measure of their environments, by profile: {', '.join(PROFILES)}"
    Parser(prog="esper telemetry", description=text, allow_abbrev=False).parse_args(list(words))
    lines = [f"{name}: {measure.says}; costs {measure.takes}" for name, measure in MEASURES.items()]
    output().write(
        profile_table() + "\n" + "".join(fill(line, COLUMNS, subsequent_indent="  ") + "\n" for line in lines)
    )
    return 0
