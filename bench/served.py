"""A contender in another process, seen from here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Served:
    """A running ``bench.contender``."""

    def __init__(self, name: str, workload: Path, cores: list[int], options: dict[str, Any], cache: Path) -> None:
        command = [sys.executable, "-m", "bench.contender", name, str(workload)]
        command += ["--cores", ",".join(map(str, cores))]
        command += [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
        self.name = name
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, **request: Any) -> None:
        """Ask without waiting."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for the next answer; the first is how the start went.

        Raises:
          RuntimeError: the contender ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"contender {self.name!r} ended with status {self.process.wait()}; see standard error")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask and wait."""
        self.send(**request)
        return self.receive()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
