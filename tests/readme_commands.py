"""The README's commands at small sizes: as words for a test, and as a script that runs them with the default backend.

``python tests/readme_commands.py`` runs each in a process of its own, in a folder that goes when all is done. What
they compile is compiled, so ``.ci/run`` does it, once; the tests run the same words without Inductor.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"

STORE = "ESPER_STORE_FOLDER"
"""Names the store that commands use, which is not to be the user's."""

ENGINE = ["--engine", "steps_per_epoch=1,batch_size=4,val_samples=4"]
SMALL = {
    "train": ["--num-envs", "2", "--rounds", "1", "--horizon", "1", "--eval-envs", "6", "--progress", "off", *ENGINE],
    "evaluate": ["--num-envs", "6", "--horizon", "1", *ENGINE],
    "inspect": ["--horizon", "1"],
    "export": ["--horizon", "1"],
    "demo": ["--num-envs", "6"],
    "estimate": ["--num-envs", "2", "--horizon", "1", *ENGINE],
    "generate": ["--num-envs", "2", "--episodes", "12", "--horizon", "1", "--progress", "off", *ENGINE],
}
SMALL["supervise"] = SMALL["sweep"] = SMALL["train"]
"""Flags that make a command small; a later flag beats an earlier one."""


def blocks(language: str) -> list[str]:
    """The README's blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def commands() -> list[list[str]]:
    """Words after ``python -m esper``, command by command, in order, as they stand in the README's blocks."""
    found = re.findall(r"^\.venv/bin/python -m esper (.*)$", "\n".join(blocks("bash")), re.M)
    return [shlex.split(line, comments=True) for line in found]


def small(words: list[str], folder: Path) -> list[str]:
    """The same command, small; ``PATH`` is a dataset in a folder."""
    data = folder / "d.npz"
    return [str(data) if word == "PATH" else word for word in words] + SMALL.get(words[0], [])


def prepare(folder: Path) -> None:
    """Put the dataset there."""
    draw = np.random.default_rng(0)
    parts = {part: draw.integers(0, 256, (20, 1, 8, 8)).astype(np.uint8) for part in ("x_train", "x_test")}
    np.savez(folder / "d.npz", **parts, y_train=np.arange(20) % 4, y_test=np.arange(20) % 4)


def main() -> int:
    """Run all commands; 1 if one failed."""
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        surroundings = os.environ | {STORE: str(Path(name) / "store")}
        for words in [*commands(), None]:
            chosen = ["-m", "esper.bench", "--task", "synthetic"] if words is None else ["-m", "esper"]
            chosen += [] if words is None else small(words, Path(name))
            begun = time.perf_counter()
            done = subprocess.run([sys.executable, *chosen], cwd=name, env=surroundings, capture_output=True, text=True)
            print(f"{time.perf_counter() - begun:6.1f} s  status {done.returncode}  {shlex.join(chosen)}", flush=True)
            if done.returncode:
                print(done.stdout, done.stderr, sep="\n")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
