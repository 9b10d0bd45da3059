"""Commands: ``python -m esper demo | train | evaluate``."""

import sys
from collections.abc import Sequence

from esper.leyline.config import ConfigError
from esper.runtime.demo import DemoSettings, demonstrate
from esper.runtime.evaluate import EvaluateSettings, evaluate
from esper.runtime.train import TrainSettings, train
from esper.tolaria.data import DatasetError
from esper.urza.checkpoint import CheckpointError
from esper.utils.settings import SettingsError, read_settings

COMMANDS = {
    "demo": (DemoSettings, demonstrate),
    "train": (TrainSettings, train),
    "evaluate": (EvaluateSettings, evaluate),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      arguments: words after the program's name; None = the process's own.

    Returns:
      exit status: 0, or 2 with one line on standard error for a value that is not allowed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in COMMANDS:
        helping = words[:1] in (["-h"], ["--help"])
        usage = f"usage: esper {{{','.join(COMMANDS)}}} [--help] [settings]"
        print(usage if helping or not words else f"esper: unknown command {words[0]!r}; {usage}", file=sys.stderr)
        return 0 if helping else 2
    kind, run = COMMANDS[words[0]]
    try:
        run(read_settings(kind, words[1:], f"esper {words[0]}"))  # type: ignore[operator]
    except (SettingsError, ConfigError, DatasetError, CheckpointError) as error:
        print(f"esper {words[0]}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
