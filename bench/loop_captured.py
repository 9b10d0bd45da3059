"""The plain PyTorch loop captured: one CUDA graph for an SGD step of all environments, and one for their validation.

What the host pays for launching the loop's kernels one by one is gone; what is left is what the device takes for them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.contract import Contender, StepResult, ValidationResult
from bench.loop import Loop
from bench.workload import Array, Workload

WARM = 3
"""Runs on a side stream before a capture, as torch asks for."""


class Captured:
    """A function of no arguments as a graph; what it returns lies in memory of the graph's own until the next run."""

    def __init__(self, function: Callable[[], Tensor]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                function()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function()

    def __call__(self) -> Tensor:
        """Run it again; the result is the caller's own."""
        self.graph.replay()
        return self.result.clone()


class CapturedLoop:
    """``Loop`` with its two parts captured."""

    def __init__(self, workload: Workload, channels_last: bool, device: str) -> None:
        self.loop = loop = Loop(workload, channels_last, False, device)
        self.places = loop.places(0, 0).clone()
        loop.reset()
        for environment in loop.environments:
            environment.train()
        self.minibatch = Captured(lambda: loop.minibatch(self.places))
        self.counts = Captured(loop.counts)
        loop.reset()

    def train(self, epoch: int) -> Array:
        """All SGD steps of an epoch -> losses [k, E]."""
        losses = []
        for step in range(self.loop.workload.steps):
            self.places.copy_(self.loop.places(epoch, step))
            losses.append(self.minibatch())
        return torch.stack(losses).cpu().numpy()

    def validate(self) -> ValidationResult:
        """Accuracy and effects."""
        return self.loop.result(self.counts())

    def step(self) -> StepResult:
        """One environment step."""
        return StepResult(self.train(0).mean(0), self.validate())


def prepare(workload: Workload, channels_last: bool = False, device: str = "cuda") -> Contender:
    """Build the loop on a CUDA device and capture it.

    Args:
      workload: the work.
      channels_last: memory format of features and weights.
      device: a CUDA device.
    """
    own = CapturedLoop(workload, channels_last, device)
    return Contender(own.loop.reset, own.train, own.validate, own.loop.norms, own.step)
