"""Learning rates and an alpha schedule tuned by forward-mode hypergradients, beside random search.

Run from the repository's root: ``python -m bench.hypergradient [--task digits_v1] [--envs 64] [--outer N] [--quick]``.

In every environment of a population one seed germinates, trains, is blended in and stays, at fixed epochs. Tuned are
the numbers of that life: the host's and the seed's learning rate at its beginning, middle and end, and alpha in every
epoch of blending and after it. Each outer step lives a fresh population with one tangent, and moves along the
hypergradient of its loss on samples set apart for tuning. Random search spends as much computation, and in another run
as much time. Everyone is then measured in environments that nobody was tuned in, on samples that nobody was tuned by.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from bench import hyper_report as report
from bench.hyper_life import FULL, QUICK, Bench, Space, build_space, set_up, write_script
from bench.hyper_report import Contender
from bench.hyper_tune import Costs, best, draw_all, draw_few, measure_costs, search, tune
from esper.bench.record import machine
from esper.runtime.tasks import named

STEPS, BATCH = 8, 32
"""SGD steps of an epoch, and samples of each."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits_v1", help="a preset whose first slot takes the blueprint")
    parser.add_argument("--blueprint", default="conv_light", help="the seed to grow (default conv_light)")
    parser.add_argument("--envs", type=int, help="environments of a population, a power of two (default 64)")
    parser.add_argument("--outer", type=int, help="outer steps (default 16)")
    parser.add_argument("--unseen", type=int, help="environments to measure in, a multiple of --envs (default 256)")
    parser.add_argument("--quick", action="store_true", help="a short life, 16 environments, 6 steps: a trial run")
    parser.add_argument("--out", type=Path, default=Path("runs/hypergradient"), help="folder for table, numbers, chart")
    asked = parser.parse_args(arguments)
    small = {"envs": 16, "outer": 6, "unseen": 64} if asked.quick else {"envs": 64, "outer": 16, "unseen": 256}
    for name, default in small.items():
        if getattr(asked, name) is None:
            setattr(asked, name, default)
    if asked.envs < 8 or asked.envs & (asked.envs - 1) or asked.unseen % asked.envs or asked.unseen < asked.envs:
        parser.error("--envs: expected a power of two of at least 8; --unseen: a multiple of it")
    if asked.outer < 1:
        parser.error("--outer: expected at least 1")
    return asked


def say(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def contend(bench: Bench, space: Space, outer: int, repeats: int) -> tuple[list[Contender], Costs]:
    """Tune, and search with the same computation in both spaces, and with the same time in the smaller one.

    Args:
      bench: E environments.
      space: H numbers.
      outer: outer steps.
      repeats: of what is timed, to say what the same computation is.
    """
    tuned = tune(bench, space, outer, say)
    costs = measure_costs(bench, space, tuned.seconds / outer, repeats)
    say(report.costs_line(costs))
    spent = outer * costs.tangent / costs.plain
    equal, longer = max(1, round(spent)), max(1, round(outer * costs.tangent / costs.fast))
    few = search(bench, space, draw_few, max(equal, longer), say)
    every = search(bench, space, draw_all, equal, say)
    size = space.start.shape[0]
    found = [Contender("defaults", space.start, [], 0, 0.0)]
    found.append(Contender("hypergradient", tuned.point, tuned.losses, spent, tuned.seconds))
    runs = (("search, 5", few[:equal]), (f"search, {size}", every), ("search, 5, longer", few[:longer]))
    for name, trials in runs:
        losses = [trial.loss for trial in trials]
        found.append(Contender(name, best(trials).point, losses, len(trials), len(trials) * costs.fast))
    return found, costs


def describe(asked: argparse.Namespace, bench: Bench, space: Space) -> str:
    """What was done, in words."""
    script, config = space.script, bench.fast.config
    life = ", ".join(f"{script.stages.count(stage)} {stage.name}" for stage in dict.fromkeys(script.stages))
    return (
        f"{asked.task}, {asked.blueprint} in slot 0; epochs: {life}; {config.steps_per_epoch} SGD steps of "
        f"{config.batch_size} samples each. H = {space.start.shape[0]} numbers, {asked.outer} outer steps of "
        f"{asked.envs} environments; {len(bench.tuning[1])} samples to tune by, "
        f"{bench.fast.data.train.size} to train on. Measured in {asked.unseen} environments not seen, on "
        f"{len(bench.held_out[1])} samples held out. Backends: {bench.eager.backend.name} for derivatives, "
        f"{bench.fast.backend.name} otherwise.\n\n"
        "Differences are paired by environment and sample, mean ± half-width of the 95 % interval over environments "
        "and samples. A life spent is one of the population without a tangent in the eager backend; a life with one "
        "counts by its processor time. `search, 5` draws two rates, their decay, steepness and target of the ramp; the "
        "other search every number; `longer` has the processor time that tuning took, in the fastest backend.\n"
    )


def run(asked: argparse.Namespace) -> str:
    """Everything; returns the report's text."""
    began, task = time.perf_counter(), named(asked.task)
    script = write_script(task, asked.blueprint, QUICK if asked.quick else FULL)
    bench = set_up(task, asked.envs, steps_per_epoch=STEPS // 2 if asked.quick else STEPS, batch_size=BATCH)
    space = build_space(bench.eager, script)
    contenders, costs = contend(bench, space, asked.outer, 1 if asked.quick else 3)
    say(f"measuring in {asked.unseen} environments")
    outcomes = [report.measure(bench, space, each.point, asked.unseen) for each in contenders]
    rows, facts = report.summarise(contenders, outcomes, 1), machine(bench.fast.data.train.inputs.device)
    text = "\n".join(
        [
            f"# Hypergradients on {asked.task}: {facts['processor']}, {facts['cores']} cores\n",
            describe(asked, bench, space),
            report.costs_line(costs)
            + f" All of it: {time.perf_counter() - began:.0f} s, {time.process_time():.0f} s of "
            f"processors ({facts['threads']} threads, load average {facts['load']:.1f}).\n",
            report.table(rows),
            report.schedule_table(space, contenders[:3]),
        ]
    )
    numbers: dict[str, Any] = {"machine": facts, "settings": {key: str(value) for key, value in vars(asked).items()}}
    numbers |= {"costs": costs._asdict(), "points": {each.name: each.point.tolist() for each in contenders}}
    chart = report.draw(space, contenders, rows, (1, 2, 3))
    name = f"{facts['processor']} {facts['cores']} cores hypergradient {asked.task}"
    paths = report.write(asked.out, name, text, numbers | {"contenders": rows}, chart)
    say(f"written: {', '.join(map(str, paths))}")
    return text


if __name__ == "__main__":
    print(run(parse()))
