"""Commands: ``python -m esper demo``."""

import argparse
import sys
from collections.abc import Sequence

from esper.leyline.config import ConfigError
from esper.runtime.demo import demonstrate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      arguments: words after the program's name; None = the process's own.

    Returns:
      exit status: 0, or 2 with one line on standard error for a value that is not allowed.
    """
    parser = argparse.ArgumentParser(prog="esper", description="Grow neural networks while they train.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="grown against static hosts on the digits; prints a table")
    demo.add_argument("--envs", type=int, default=32, help="environments, at least 6 (default 32)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the environments (default 0)")
    demo.add_argument("--blueprint", default="bottleneck", help="what to grow (default bottleneck)")
    demo.add_argument("--eager", action="store_true", help="do not compile")
    options = parser.parse_args(arguments)
    if options.envs < 6:
        parser.error(f"--envs {options.envs}: expected at least 6")
    try:
        demonstrate(options.envs, options.seed, options.blueprint, False if options.eager else "auto")
    except (ConfigError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
