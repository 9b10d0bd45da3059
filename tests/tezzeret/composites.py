"""A host with bypasses as a user would write it: ``torch.nn``, autograd, ``torch.optim``, ``detach``; and as Esper's.

The composite is one environment. Rows of learners are loaded into its modules and read from them again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.cnn import cnn_host
from esper.kasmina.layers import apply_batch_norm, batch_norm, conv2d, linear, track
from esper.kasmina.layout import Params, constant, fan_in_uniform
from esper.kasmina.objectives import Objective, cross_entropy
from esper.leyline.config import Isolation
from esper.leyline.stages import Stage

SHAPE, CLASSES, WIDTH = (1, 4, 4), 3, 3
HOST = cnn_host(SHAPE, CLASSES, num_blocks=2, base_channels=2, pool_blocks=1)


def _certainty(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


OBJECTIVE = Objective("certainty", cross_entropy().loss, _certainty, lambda count: 1.0)
"""Cross-entropy whose score is the probability of the target: a number in which small differences show."""


def _convolved(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    y, weights = conv2d(x, p["conv"]), (p["norm.weight"], p["norm.bias"])
    if not train:
        return apply_batch_norm(y, *weights, b["mean"], b["variance"]), b
    y, mean, variance = batch_norm(y, *weights)
    return y, {"mean": track(b["mean"], mean), "variance": track(b["variance"], variance)}


def _blueprint(name: str, fits: Any, width: Any, run: Any, is_bypass: bool, head: bool = False) -> Blueprint:
    def params(source: Any, target: Any) -> Any:
        fan_in, out = 9 * source.channels, width(target)
        conv = fan_in_uniform("conv", (out, source.channels, 3, 3), fan_in)
        last = constant("weight", (CLASSES, out), 0.0), constant("bias", (CLASSES,), 0.0)
        return conv, constant("norm.weight", (out,), 1.0), constant("norm.bias", (out,), 0.0), *(last if head else ())

    def buffers(source: Any, target: Any) -> Any:
        return constant("mean", (width(target),), 0.0), constant("variance", (width(target),), 1.0)

    def train(p: Params, b: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
        del key
        return run(p, b, x, True)

    return Blueprint(
        name,
        fits,
        params,
        train,
        lambda p, b, x: run(p, b, x, False)[0],
        lambda source, target: 1,
        9.0,
        buffers,
        is_bypass=is_bypass,
    )


def _run_net(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    y, new = _convolved(p, b, x, train)
    return linear(torch.relu(y).mean((-2, -1)), p["weight"], p["bias"]), new


def _run_step(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    y, new = _convolved(p, b, x, train)
    return torch.tanh(y), new


def _run_same(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    y, new = _convolved(p, b, x, train)
    return x + torch.tanh(y), new


def _widens(source: Any, target: Any) -> bool:
    return source != target and (source.kind, target.kind) == ("conv", "conv") and source.shape[1:] == target.shape[1:]


BLUEPRINTS = (
    _blueprint("net", lambda s, t: (s.kind, t.kind) == ("conv", "logits"), lambda t: WIDTH, _run_net, True, head=True),
    _blueprint("step", _widens, lambda t: t.channels, _run_step, True),
    _blueprint("same", lambda s, t: s == t and s.kind == "conv", lambda t: t.channels, _run_same, False),
)


class Convolved(nn.Module):
    """Convolution and batch norm; ``silent``: with the statistics of the batch, and without leaving a trace."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor, silent: bool = False) -> Tensor:
        y = self.conv(x)
        return F.batch_norm(y, None, None, self.norm.weight, self.norm.bias, True) if silent else self.norm(y)


class Classifier(Convolved):
    """A small classifier."""

    def __init__(self) -> None:
        super().__init__(SHAPE[0], WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(super().forward(x)).mean((-2, -1)))


class Downsample(Convolved):
    """From the maps behind block 0 to those behind block 1."""

    def __init__(self) -> None:
        super().__init__(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class Same(Convolved):
    """A residual branch."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(super().forward(x))


class PlainHost(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block0, self.block1, self.head = Convolved(1, 2), Convolved(2, 4), nn.Linear(4, CLASSES)

    def first(self, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.relu(self.block0(x)), 2)

    def second(self, h: Tensor, silent: bool = False) -> Tensor:
        return torch.relu(self.block1(h, silent))

    def last(self, h: Tensor) -> Tensor:
        return self.head(h.mean((-2, -1)))


def statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances, in order."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    return [row for norm in norms for row in (norm.running_mean, norm.running_var)]


class TrainedModule:
    """A module with its optimizer."""

    def __init__(self, module: nn.Module, row: Tensor, held: Tensor, numbers: dict[str, float], who: str) -> None:
        self.module, self.limit = module.double(), numbers[f"{who}_clip"]
        self.params = list(module.parameters())
        vector_to_parameters(row.clone(), self.params)
        own = statistics(module)
        for mine, given in zip(own, held.split([part.numel() for part in own]), strict=True):
            mine.copy_(given)
        decay = {"momentum": numbers["momentum"], "weight_decay": numbers[f"{who}_weight_decay"]}
        self.optimizer = torch.optim.SGD(self.params, lr=numbers[f"{who}_lr"], **decay)

    def descend(self, loss: Tensor) -> None:
        """Take the gradient of a loss; the step is taken later."""
        for param, grad in zip(self.params, torch.autograd.grad(loss, self.params, retain_graph=True), strict=True):
            param.grad = grad

    def step(self) -> None:
        """Clip and step."""
        clip_grad_norm_(self.params, self.limit)
        self.optimizer.step()

    def row(self) -> Tensor:
        """Parameters, then running statistics."""
        return torch.cat([parameters_to_vector(self.params).detach(), *statistics(self.module)])


class Composite:
    """A host with two slots; subclasses say where they are. ``stages`` lists the slots that hold an active seed."""

    def __init__(
        self, host: TrainedModule, seeds: dict[int, TrainedModule], isolation: Isolation, target: float
    ) -> None:
        self.host, self.seeds, self.isolation, self.target = host, seeds, isolation, target

    def reads(self, stage: Stage, x: Tensor) -> Tensor:
        """What a seed sees: given until BLENDING ends."""
        return x.detach() if stage in (Stage.TRAINING, Stage.BLENDING) else x

    def echo(self, s: Tensor) -> Tensor:
        """What a seed in TRAINING adds: nothing, but a way for the gradient."""
        return 0 if self.isolation is Isolation.OBJECTIVE else s - s.detach()

    def train(self, x: Tensor, y: Tensor, stages: dict[int, Stage], alphas: list[float]) -> float:
        """One step of SGD."""
        for part in (self.host, *self.seeds.values()):
            part.module.train()
        outputs, own = self.run(x, stages, alphas)
        loss = F.cross_entropy(outputs, y)
        self.host.descend(loss)
        for number in stages:
            self.seeds[number].descend(F.cross_entropy(own[number], y) if number in own else loss)
        for part in (self.host, *(self.seeds[number] for number in stages)):
            part.step()
        return loss.item()

    def look(self, x: Tensor, stages: dict[int, Stage], alphas: list[float], on: int | None = None) -> Tensor:
        """Outputs in inference; ``on``: a seed in TRAINING that is there all the same, at the target."""
        for part in (self.host, *self.seeds.values()):
            part.module.eval()
        there = {
            number: Stage.FOSSILIZED for number, stage in stages.items() if stage != Stage.TRAINING or number == on
        }
        weights = [self.target if number == on else alpha for number, alpha in enumerate(alphas)]
        with torch.no_grad():
            return self.run(x, there, weights)[0]


class Shortcut(Composite):
    """Slot 0 from the input to the logits; slot 1 behind block 0."""

    slots = ("input:logits", 0)
    modules = (Classifier, Same)
    kinds = (0, 2)

    def run(self, x: Tensor, stages: dict[int, Stage], alphas: list[float]) -> tuple[Tensor, dict[int, Tensor]]:
        host, own = self.host.module, {}
        h = host.first(x)
        net = self.seeds[0].module(x) if 0 in stages else None
        beside = alphas[0] * net if 0 in stages and stages[0] != Stage.TRAINING else 0.0
        if 1 in stages:
            s = self.seeds[1].module(self.reads(stages[1], h))
            if stages[1] == Stage.TRAINING and self.isolation is Isolation.OBJECTIVE:
                end = host.last(host.second(torch.lerp(h.detach(), s, self.target), silent=True))
                own[1] = end + (beside.detach() if 0 in stages and stages[0] != Stage.TRAINING else 0.0)
            h = h + self.echo(s) if stages[1] == Stage.TRAINING else torch.lerp(h, s, alphas[1])
        logits = host.last(host.second(h))
        if 0 in stages and stages[0] == Stage.TRAINING:
            own[0] = logits.detach() + self.target * net
            beside = self.echo(net)
            own = own if self.isolation is Isolation.OBJECTIVE else {}
        return logits + beside, own


class Around(Composite):
    """Slot 0 behind block 0; slot 1 from there, what slot 0 made of it, to behind block 1. Straight-through only."""

    slots = (0, "block0:block1")
    modules = (Same, Downsample)
    kinds = (2, 1)

    def run(self, x: Tensor, stages: dict[int, Stage], alphas: list[float]) -> tuple[Tensor, dict[int, Tensor]]:
        host, h = self.host.module, self.host.module.first(x)
        if 0 in stages:
            s = self.seeds[0].module(self.reads(stages[0], h))
            h = h + self.echo(s) if stages[0] == Stage.TRAINING else torch.lerp(h, s, alphas[0])
        after = host.second(h)
        if 1 in stages:
            s = self.seeds[1].module(self.reads(stages[1], h))
            after = after + (self.echo(s) if stages[1] == Stage.TRAINING else alphas[1] * s)
        return host.last(after), {}
