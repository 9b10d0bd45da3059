"""``python -m esper.bench [throughput | list | run [CASE...] | compare A.json B.json]``."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TextIO

from esper.utils.starting import ending_on_interrupt

with ending_on_interrupt(__name__ == "__main__"):
    import torch

    from esper.bench.case import Bench, Case
    from esper.bench.cases import cases_of
    from esper.bench.compare import compare
    from esper.bench.fresh import ProbeError
    from esper.bench.record import FORMAT, machine, to_table
    from esper.bench.report import listing, report
    from esper.bench.run import run_cases
    from esper.bench.settings import THROUGHPUT, Asked, choose, read_arguments
    from esper.bench.throughput import ENVS, measure, to_rows
    from esper.bench.throughput_report import chart, table
    from esper.leyline.config import ConfigError
    from esper.runtime.tasks import TASKS
    from esper.tolaria.data import DatasetError
    from esper.utils.documents import one_line, to_json
    from esper.utils.settings import SettingsError

RED, MISUSED, INTERRUPTED = 1, 2, 130
"""Exit statuses: a gate, or what was compared, was red; a word on the command line is not allowed; Ctrl-C."""


def run(asked: Asked, out: TextIO, notes: TextIO, table: dict[str, Case] | None = None) -> int:
    """Measure, report, and write the file.

    Args:
      asked: what.
      out: where the report goes.
      notes: where progress goes.
      table: the cases; None = the task's.

    Returns:
      0, or 1 if a gate was red.
    """
    bench = asked.bench()
    chosen = choose(cases_of(bench.task) if table is None else table, asked.cases)
    facts = machine(bench.device)

    def note(line: str) -> None:
        notes.write(line + "\n")
        notes.flush()

    results = run_cases(bench, chosen, asked.envs, asked.repeat, asked.probe, note)
    record = to_table(facts, _settings(asked, bench), results)
    out.write(report(record, results))
    if asked.json is not None:
        asked.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return RED if any(result.wrong is not None for result in results) else 0


def throughput(asked: Asked, out: TextIO, notes: TextIO, envs: Sequence[int] = ENVS) -> int:
    """Measure steps a second, print the table, and write the chart and, if asked, the file.

    Returns:
      0, or 1 if a gate was red.
    """
    begun, bench = time.perf_counter(), asked.bench()
    facts = machine(bench.device) | {"instruction_set": torch.backends.cpu.get_cpu_capability()}
    settings = _settings(replace(asked, envs=tuple(envs)), bench)
    rows = measure(bench, lambda line: print(line, file=notes, flush=True), begun, envs)
    out.write(table(facts, settings, rows))
    if asked.chart is not None and any(row.missing is None for row in rows):
        asked.chart.write_text(chart(f"Esper on {asked.task}, {facts['processor']}", rows), encoding="utf-8")
        out.write(f"chart: {asked.chart}\n")
    if asked.json is not None:
        record = {"format": FORMAT, "machine": facts, "settings": settings, "throughput": to_rows(rows)}
        asked.json.write_text(to_json(record, indent=1) + "\n", encoding="utf-8")
    return RED if any((row.missing or "").startswith("WRONG") for row in rows) else 0


def _settings(asked: Asked, bench: Bench) -> dict[str, Any]:
    """What was measured, with the sizes that decide what it costs."""
    engine = bench.engine(asked.envs[0])
    config = engine.config
    return {
        "cases": list(asked.cases),
        "envs": list(asked.envs),
        "task": asked.task,
        "host": bench.task.host.name,
        "slots": config.num_slots,
        "batch_size": config.batch_size,
        "steps_per_epoch": config.steps_per_epoch,
        "horizon": config.horizon,
        "device": asked.device,
        "dtype": asked.dtype,
        "backend": engine.backend.name,
        "runs": list(engine.describe()),
        "repeat": asked.repeat,
        "quick": asked.quick,
        "probe": asked.probe,
    }


def _compare(asked: Asked, out: TextIO, notes: TextIO) -> int:
    """Print two runs side by side; 0, 1 if something is red, 2 with one line if nothing could be compared."""
    found = compare(*asked.files)
    out.write(found.text)
    if not found.judged:
        names = ", ".join(map(str, asked.files))
        notes.write(one_line(f"esper.bench: {names}: nothing compared; expected runs of equal settings") + "\n")
        return MISUSED
    return RED if found.red else 0


def main(words: Sequence[str] | None = None, out: TextIO | None = None, notes: TextIO | None = None) -> int:
    """Run a command.

    Args:
      words: after the program's name; None = the process's own.
      out, notes: where the report and the progress go; None = standard output and standard error.

    Returns:
      exit status: 0; 1 if a gate, or what was compared, was red; 2 with one line for a word that is not allowed, a
      process that failed, or two files that cannot be compared; 130 after Ctrl-C.
    """
    out, notes = sys.stdout if out is None else out, sys.stderr if notes is None else notes
    try:
        asked = read_arguments(sys.argv[1:] if words is None else words)
        if asked.action == "list":
            out.write(listing(cases_of(TASKS[asked.task]())))
            return 0
        if asked.action == "compare":
            return _compare(asked, out, notes)
        if asked.action == THROUGHPUT:
            return throughput(asked, out, notes)
        return run(asked, out, notes)
    except (SettingsError, ConfigError, DatasetError, ProbeError) as error:
        notes.write(one_line(f"esper.bench: {error}") + "\n")
        return MISUSED
    except KeyboardInterrupt:
        notes.write("esper.bench: interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
