"""What dormant slots cost: an environment step with three of them beside the same hosts without any.

Run from the repository's root: ``python -m bench.overhead [--backend eager] [--envs E] [--repeat N]``. The two take
turns in one process; quoted are medians and the median of the paired ratios.
"""

import argparse
from functools import partial

import torch

import esper
from esper.bench.measure import interleave, percentile
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.tezzeret.choose import CHOICES
from esper.tolaria.digits import digits

HOSTS = {"cnn 4": ({"num_blocks": 1, "base_channels": 4}, (0, 0, 0)), "cnn 8-16-32": ({"base_channels": 8}, (0, 1, 2))}


def compare(name: str, backend: str, envs: int, repeat: int) -> str:
    """One line for one host."""
    shape, slots = HOSTS[name]
    dataset = digits()
    task = esper.Task(name, cnn_host(dataset.input_shape, dataset.num_classes, **shape), CONV_BLUEPRINTS, dataset, {})
    engines = [esper.make(task, envs, backend=backend, slots=each, steps_per_epoch=16) for each in (slots, ())]
    wait = torch.zeros(envs, dtype=torch.int64)
    runs = [(partial(each.step, each.init(0), wait), 0) for each in engines]
    seconds = interleave(runs, repeat, torch.device("cpu"))
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    with_slots, without = (1e3 * percentile(column, 0.5) for column in seconds)
    low, middle, high = (percentile(ratios, share) for share in (0.25, 0.5, 0.75))
    return (
        f"{name:<12} {engines[0].backend.name:<9} dormant slots {with_slots:7.1f} ms   no slots {without:7.1f} ms   "
        f"paired ratio: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}"
    )


def main() -> None:
    """Print a line per host."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=CHOICES, default="auto")
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=31)
    asked = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, E = {asked.envs}, 16 SGD steps of 64 samples, digits")
    for name in HOSTS:
        print(compare(name, asked.backend, asked.envs, asked.repeat), flush=True)


if __name__ == "__main__":
    main()
