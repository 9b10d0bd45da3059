"""How much of Esper its tests run: total per cent, and the files of which they run least.

``python tests/coverage_report.py [FILE]`` reads what ``coverage`` wrote (default: .coverage) and prints it; ``.ci/run``
ends with that. Processes that tests start or fork are not measured, so what only they run counts as not run.
"""

import sys
from typing import NamedTuple

from coverage import Coverage

LEAST = 10
"""Files that are named."""


class Covered(NamedTuple):
    """A file: its statements, and how many of them were run."""

    name: str
    statements: int
    run: int

    @property
    def percent(self) -> float:
        """Of the statements."""
        return 100 * self.run / self.statements


def covered(data_file: str, **options: object) -> list[Covered]:
    """Every file with statements, by what ``coverage`` wrote; a file that was never imported has run none."""
    measured = Coverage(data_file=data_file, **options)
    measured.load()
    names = measured.get_data().measured_files()
    found = []
    for name in sorted(names):
        _, statements, _, missing, _ = measured.analysis2(name)
        if statements:
            found.append(Covered(name, len(statements), len(statements) - len(missing)))
    return found


def report(files: list[Covered], root: str = "") -> str:
    """A line for the total, and one for each of the least covered files; of equal ones the longer first."""
    total = Covered("", sum(each.statements for each in files), sum(each.run for each in files))
    least = sorted(files, key=lambda each: (each.percent, -each.statements, each.name))[:LEAST]
    lines = [
        f"coverage: {total.percent:.1f} % of {total.statements:,} statements in {len(files)} files; least covered:"
    ]
    lines += [f"{each.percent:6.1f} %  {each.statements:5}  {each.name.removeprefix(root)}" for each in least]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import os

    sys.stdout.write(report(covered(*(sys.argv[1:] or [".coverage"])), os.getcwd() + os.sep))
