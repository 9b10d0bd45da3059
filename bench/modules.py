"""Host, seeds and slots of one environment as ``torch.nn`` modules: what a user of plain PyTorch would write.

Parameters are registered in the order in which Esper's layouts list them, so a flat row loads in one call. Nothing is
drawn: modules are made without storage and then filled.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.workload import Array, NetworkSpec, Workload


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x + self.branch(x)


class Norm(nn.Module):
    """x + tanh(scale) * (norm(x) - x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(min(32, channels), channels)
        self.scale = nn.ParameterList([torch.zeros(1)])  # a child, because it comes after the norm's parameters

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W]."""
        return x + torch.tanh(self.scale[0]) * (self.norm(x) - x)


class SqueezeExcite(nn.Module):
    """x * 2 sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(1, channels // 4)
        self.squeeze = nn.Linear(channels, width, bias=False)
        self.excite = nn.Linear(width, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W]."""
        gate = 2 * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


def conv(into: int, out: int, kernel: int, groups: int = 1) -> nn.Conv2d:
    """Same padding, no bias."""
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, groups=groups, bias=False)


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 16 channels where powers of two allow, else one channel each."""
    divisors = [groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0]
    return nn.GroupNorm(next((g for g in divisors if channels // g >= 16), divisors[0]), channels)


def seed_module(name: str, c: int) -> nn.Module:
    """A blueprint at a site of ``c`` channels."""
    b = max(8, c // 4)
    match name:
        case "norm":
            return Norm(c)
        case "attention":
            return SqueezeExcite(c)
        case "depthwise":
            return Residual(conv(c, c, 3, groups=c), conv(c, c, 1), group_norm(c), nn.ReLU())
        case "conv_small":
            return Residual(group_norm(c), nn.ReLU(), conv(c, c, 1))
        case "conv_light":
            return Residual(conv(c, c, 3), group_norm(c), nn.ReLU())
        case "conv_heavy":
            return Residual(conv(c, c, 3), group_norm(c), nn.ReLU(), conv(c, c, 3), group_norm(c), nn.ReLU())
        case "bottleneck":
            inner = (nn.ReLU(), conv(b, b, 3), group_norm(b), nn.ReLU())
            return Residual(conv(c, b, 1), group_norm(b), *inner, conv(b, c, 1))
    raise ValueError(f"seed_module: blueprint {name!r} has no rendering here")


def host_parts(input_shape: tuple[int, ...], channels: tuple[int, ...], num_classes: int) -> list[nn.Sequential]:
    """Blocks of convolution, batch norm, relu and 2x2 maximum; then mean and a linear head."""
    parts, into = [], input_shape[0]
    for out in channels:
        parts.append(nn.Sequential(conv(into, out, 3), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)))
        into = out
    return [*parts, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, num_classes))]


NORM_FIRST = ("norm", "conv_small")
"""Blueprints that begin with a group norm."""


class Role(NamedTuple):
    """What a slot does with its seed."""

    training: bool
    isolated: bool
    alpha: float
    target: float  # alpha of the prospect of a seed that trains behind the host


def mix(h: Tensor, s: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) h + alpha s."""
    return s if alpha == 1 else torch.lerp(h, s, alpha)


class ActiveSlot(nn.Module):
    """An active seed in its slot.

    Attributes:
      as_leaf: detached features ask for a gradient that nobody reads. On a CPU the eager backward of a ``GroupNorm``
        over channels_last features dies of a segmentation fault where its input needs no gradient (torch 2.13.0).
    """

    def __init__(self, seed: nn.Module, role: Role, as_leaf: bool) -> None:
        super().__init__()
        self.seed, self.role, self.as_leaf = seed, role, as_leaf

    def forward(self, h: Tensor) -> Tensor:
        """As in training or as in validation, by the module's mode; [B, C, H, W]."""
        role = self.role
        if not self.training:
            return h if role.training else mix(h, self.seed(h), role.alpha)
        s = self.seed(h.detach().requires_grad_(self.as_leaf) if role.isolated else h)
        return h + (s - s.detach()) if role.training else mix(h, s, role.alpha)

    def switched(self, h: Tensor) -> Tensor:
        """The counterfactual: a seed that takes part is off, one that trains behind the host is on."""
        return mix(h, self.seed(h), self.role.target) if self.role.training else h

    def form(self) -> tuple[object, ...]:
        """Equal for slots that one graph can serve."""
        return self.role, str(self.seed)


class Environment(nn.Module):
    """A host and its active seeds, one behind the other; seeds in training learn straight through.

    Attributes:
      host: blocks and head.
      path: blocks, active slots and the head in the order in which features pass through them.
      blocks: per part of ``path`` the block that it is, or behind which it acts.
      slots: per active slot its index in ``path``, and which slot it is.
    """

    def __init__(
        self, workload: Workload, env: int, memory_format: torch.memory_format, eager: bool, device: str = "cpu"
    ) -> None:
        super().__init__()
        structure = workload.structure
        fragile = NORM_FIRST if eager and memory_format is torch.channels_last else ()
        self.slots: list[tuple[int, int]] = []
        self.blocks: list[int] = []
        path: list[nn.Module] = []
        with torch.device("meta"):
            self.host = self.make_host(structure)
            for block, part in enumerate(self.host):
                path.append(part)
                for slot, after in enumerate(structure.slots):
                    kind = int(workload.kind[env, slot])
                    if after == block and kind >= 0:
                        self.slots.append((len(path), slot))
                        name = structure.blueprints[kind]
                        path.append(self.make_slot(structure, slot, name, role(workload, env, slot), name in fragile))
                self.blocks += [block] * (len(path) - len(self.blocks))
        self.path = nn.ModuleList(path)
        self.rows = initial_rows(workload, env)
        self.to_empty(device=device).to(getattr(torch, structure.precision)).to(memory_format=memory_format)
        self.share()
        self.reset()

    def make_host(self, structure: NetworkSpec) -> list[nn.Module]:
        """Blocks and head."""
        return [*host_parts(structure.input_shape, structure.channels, structure.num_classes)]

    def make_slot(self, structure: NetworkSpec, slot: int, name: str, role: Role, as_leaf: bool) -> ActiveSlot:
        """A slot with a seed of a blueprint."""
        return ActiveSlot(seed_module(name, structure.channels[structure.slots[slot]]), role, as_leaf)

    def share(self) -> None:
        """Let modules share what they share, once it has its storage."""

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the initial numbers, in place."""
        for part, row in zip(self.parts(), self.rows, strict=True):
            values = torch.from_numpy(row).split([param.numel() for param in part])
            for param, value in zip(part, values, strict=True):
                param.copy_(value.view_as(param))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()

    def parts(self) -> list[list[nn.Parameter]]:
        """What is clipped together: the host's parameters, then each seed's."""
        host = list(nn.ModuleList(self.host).parameters())
        return [host, *(list(self.path[index].seed.parameters()) for index, _ in self.slots)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of inputs [B, C, H, W]."""
        for part in self.path:
            x = part(x)
        return x

    def losses(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """The mean cross-entropy of a minibatch, then whatever else is descended beside it."""
        return [F.cross_entropy(self(inputs), targets)]

    def score(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Correct predictions as it is, then with each active slot switched; what lies before a slot is shared."""
        seen, x = [], inputs
        for part in self.path:
            seen.append(x)
            x = part(x)
        counts = [(x.argmax(-1) == targets).sum()]
        for index, _ in self.slots:
            x = self.path[index].switched(seen[index])
            for part in self.path[index + 1 :]:
                x = part(x)
            counts.append((x.argmax(-1) == targets).sum())
        return counts


def role(workload: Workload, env: int, slot: int) -> Role:
    """What a slot of an environment does."""
    return Role(
        training=bool(workload.training[env, slot]),
        isolated=bool(workload.isolated[env, slot]),
        alpha=float(workload.alpha[env, slot]),
        target=workload.structure.numbers.alpha_target,
    )


def initial_rows(workload: Workload, env: int) -> list[Array]:
    """Initial numbers of the host, then of each active seed."""
    rows = [workload.host[env]]
    for slot, kind in enumerate(workload.kind[env]):
        if kind >= 0:
            place = int((workload.rows(slot, kind) < env).sum())
            rows.append(workload.seeds[slot][kind][place])
    return rows
