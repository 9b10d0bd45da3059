"""What dormant slots cost: an environment step with three of them beside the same hosts without any.

Run from the repository's root: ``python bench/overhead.py [--eager] [--repeat N]``. The two are interleaved in one
process; quoted are medians and the median of the paired ratios.
"""

import argparse
import statistics
import time

import torch

import esper
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.tolaria import data

ENVS = 64
HOSTS = {"cnn 4": ({"num_blocks": 1, "base_channels": 4}, (0, 0, 0)), "cnn 8-16-32": ({"base_channels": 8}, (0, 1, 2))}


def compare(name: str, compile: bool, repeat: int) -> str:
    """One line for one host."""
    shape, slots = HOSTS[name]
    dataset = data.digits()
    task = esper.Task(name, cnn_host(dataset.input_shape, dataset.num_classes, **shape), CONV_BLUEPRINTS, dataset, {})
    engines = [esper.make(task, ENVS, compile=compile, slots=each, steps_per_epoch=16) for each in (slots, ())]
    states = [engine.init(0) for engine in engines]
    wait = torch.zeros(ENVS, dtype=torch.int64)
    for engine, state in zip(engines, states, strict=True):
        engine.step(state, wait)
    times: list[list[float]] = [[], []]
    for turn in range(repeat):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            engines[which].step(states[which], wait)
            times[which].append(time.perf_counter() - start)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    with_slots, without = (1e3 * statistics.median(column) for column in times)
    mode = "compiled" if compile else "eager"
    quartiles = statistics.quantiles(ratios, n=4)
    return (
        f"{name:<12} {mode:<9} dormant slots {with_slots:7.1f} ms   no slots {without:7.1f} ms   "
        f"paired ratio: median {statistics.median(ratios):.3f}, quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f}"
    )


def main() -> None:
    """Print a line per host."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--repeat", type=int, default=31)
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, E = {ENVS}, 16 SGD steps of 64 samples, digits"
    )
    for name in HOSTS:
        print(compare(name, not options.eager, options.repeat), flush=True)


if __name__ == "__main__":
    main()
