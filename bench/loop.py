"""A plain PyTorch loop over environments, each a ``torch.nn`` module: eager, or compiled."""

import types
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from bench.contract import Contender, StepResult, ValidationResult
from bench.modules import ActiveSlot, Environment
from bench.modules_objective import ObjectiveEnvironment
from bench.modules_tokens import TokenEnvironment
from bench.workload import Array, NetworkSpec, RateHypers, Workload


def environment_type(structure: NetworkSpec) -> type[Environment]:
    """The modules that render such networks.

    Raises:
      ValueError: none does.
    """
    is_straight, is_bypassed = structure.isolation == "straight_through", structure.sources != structure.slots
    if structure.isolation == "objective" and not structure.takes_tokens:
        return ObjectiveEnvironment
    if is_straight and not is_bypassed:
        return TokenEnvironment if structure.takes_tokens else Environment
    raise ValueError(
        f"{structure.name}: isolation {structure.isolation}, slots {structure.slots} that read at {structure.sources}; "
        "expected seeds that train straight through and no bypass, or images"
    )


def own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with a code object of its own, under which dynamo keeps its graphs and counts them."""
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace()
    return types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )


def signature(environment: Environment) -> tuple[Any, ...]:
    """Equal for environments that one graph can serve."""
    return tuple(part.form() if isinstance(part, ActiveSlot) else str(part) for part in environment.path)


def train_losses(environment: Environment, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Mean cross-entropy of a minibatch, then what seeds descend by themselves."""
    return environment.losses(inputs, targets)


def scores(environment: Environment, inputs: Tensor, targets: Tensor) -> Tensor:
    """Counts of correct predictions, [1 + active slots]."""
    return torch.stack(environment.score(inputs, targets))


class Graphs(NamedTuple):
    """What is called for one environment."""

    losses: Callable[[Environment, Tensor, Tensor], list[Tensor]]
    scores: Callable[[Environment, Tensor, Tensor], Tensor]


def graphs_of(environments: list[Environment], compile: bool) -> list[Graphs]:
    """The functions to call, per environment; compiled, those of equal structure share them."""
    if not compile:
        return [Graphs(train_losses, scores)] * len(environments)
    known: dict[Any, Graphs] = {}
    for environment in environments:
        key = signature(environment)
        if key not in known:
            build = partial(torch.compile, fullgraph=True, dynamic=False)
            known[key] = Graphs(build(own_code(train_losses)), build(own_code(scores)))
    return [known[signature(environment)] for environment in environments]


def make_optimizer(environments: list[Environment], structure: NetworkSpec) -> torch.optim.Optimizer:
    """One fused optimizer over all environments; hosts and seeds have rates and decays of their own.

    Raises:
      ValueError: neither SGD nor Adam.
    """
    numbers = structure.numbers
    hosts = [param for environment in environments for param in environment.parts()[0]]
    seeds = [param for environment in environments for part in environment.parts()[1:] for param in part]
    groups: list[dict[str, Any]] = [{"params": hosts, "lr": numbers.host_lr, "weight_decay": numbers.host_decay}]
    if seeds:
        groups.append({"params": seeds, "lr": numbers.seed_lr, "weight_decay": numbers.seed_decay})
    match structure.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, momentum=numbers.momentum, fused=True)
        case "adam":
            betas = (numbers.adam_beta1, numbers.adam_beta2)
            return torch.optim.Adam(groups, betas=betas, eps=numbers.adam_epsilon, fused=True)
    raise ValueError(f"{structure.name}: optimizer {structure.optimizer!r}; expected sgd or adam")


class JointClip:
    """Clips the gradients of many parts, each by its own norm, in a dozen calls."""

    def __init__(self, environments: list[Environment], numbers: RateHypers) -> None:
        parts = [part for environment in environments for part in environment.parts()]
        limits = [n for e in environments for n in (numbers.host_clip, *[numbers.seed_clip] * len(e.slots))]
        self.params = list(chain.from_iterable(parts))
        like = self.params[0]
        self.owner = torch.tensor([index for index, part in enumerate(parts) for _ in part], device=like.device)
        self.limit = torch.tensor(limits, dtype=like.dtype, device=like.device)

    def __call__(self) -> None:
        """Scale ``.grad`` in place."""
        grads = [param.grad for param in self.params]
        squares = torch.stack(torch._foreach_norm(grads)).square()
        norms = torch.zeros_like(self.limit).index_add_(0, self.owner, squares).sqrt()
        factors = (self.limit / (norms + 1e-6)).clamp_(max=1)
        torch._foreach_mul_(grads, list(factors[self.owner].unbind()))


class Loop:
    """The environments with their optimizer and data."""

    def __init__(self, workload: Workload, channels_last: bool, compile: bool, device: str = "cpu") -> None:
        self.workload = workload
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        count = workload.num_envs
        make = environment_type(workload.structure)
        self.environments = [make(workload, e, self.layout, not compile, device) for e in range(count)]
        self.optimizer = make_optimizer(self.environments, workload.structure)
        self.clip = JointClip(self.environments, workload.structure.numbers)
        self.graphs = graphs_of(self.environments, compile)
        names = ("train_inputs", "train_targets", "val_inputs", "val_targets", "indices")
        tables = [torch.from_numpy(getattr(workload, name)).to(device) for name in names]
        self.train_inputs, self.train_targets, self.val_inputs, self.val_targets, self.indices = tables
        self.val_inputs = self.val_inputs.contiguous(memory_format=self.layout)

    def reset(self) -> None:
        """Initial numbers, and an optimizer that has taken no step."""
        for environment in self.environments:
            environment.reset()
        for state in self.optimizer.state.values():
            for value in state.values():
                if value is not None:
                    value.zero_()

    def places(self, epoch: int, step: int) -> Tensor:
        """Samples of a minibatch, [E, B], or [1, B] where all environments share them."""
        return self.indices[epoch, :, step]

    def backward(self, places: Tensor, env: int) -> Tensor:
        """Loss of one environment's minibatch; what is descended leaves its gradient in ``.grad``."""
        rows = places[env % places.shape[0]]
        inputs = self.train_inputs[rows].contiguous(memory_format=self.layout)
        losses = self.graphs[env].losses(self.environments[env], inputs, self.train_targets[rows])
        torch.autograd.backward(losses)
        return losses[0].detach()

    def train(self, epoch: int) -> Array:
        """All SGD steps of an epoch -> losses [k, E]."""
        for environment in self.environments:
            environment.train()
        losses = [self.minibatch(self.places(epoch, step)) for step in range(self.workload.steps)]
        return torch.stack(losses).cpu().numpy()

    def minibatch(self, places: Tensor) -> Tensor:
        """One SGD step of every environment -> losses [E]."""
        losses = torch.stack([self.backward(places, env) for env in range(len(self.environments))])
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses

    @torch.no_grad()
    def counts(self) -> Tensor:
        """Correct predictions of every environment: as it is, then with each active slot switched; side by side."""
        for environment in self.environments:
            environment.eval()
        called = zip(self.graphs, self.environments, strict=True)
        return torch.cat([graphs.scores(each, self.val_inputs, self.val_targets) for graphs, each in called])

    def validate(self) -> ValidationResult:
        """Accuracy and effects."""
        return self.result(self.counts())

    def result(self, counts: Tensor) -> ValidationResult:
        """Accuracy and effects from ``counts``."""
        accuracy = torch.zeros(len(self.environments), dtype=torch.float64)
        effect = torch.zeros(len(self.environments), self.workload.num_slots, dtype=torch.float64)
        rows = (counts.cpu() * (100 / self.val_targets.numel())).split([1 + len(e.slots) for e in self.environments])
        for env, (environment, rates) in enumerate(zip(self.environments, rows, strict=True)):
            accuracy[env] = rates[0]
            for rate, (index, slot) in zip(rates[1:], environment.slots, strict=True):
                gain = rates[0] - rate
                effect[env, slot] = -gain if environment.path[index].role.training else gain
        return ValidationResult(accuracy.numpy(), effect.numpy())

    def norms(self) -> Array:
        """Of the parameters of hosts and seeds."""
        norms = torch.zeros(len(self.environments), 1 + self.workload.num_slots, dtype=torch.float64)
        for env, environment in enumerate(self.environments):
            columns = [0, *(1 + slot for _, slot in environment.slots)]
            parts = [[param.detach().double() for param in part] for part in environment.parts()]
            norms[env, columns] = torch.stack([get_total_norm(part) for part in parts]).cpu()
        return norms.numpy()

    def step(self) -> StepResult:
        """One environment step."""
        return StepResult(self.train(0).mean(0), self.validate())


def prepare(workload: Workload, channels_last: bool = False, compile: bool = False, device: str = "cpu") -> Contender:
    """Build the loop.

    Args:
      workload: the work.
      channels_last: memory format of features and weights.
      compile: forward and loss of a structure in one graph, and its validation in another.
      device: where everything lives.
    """
    loop = Loop(workload, channels_last, compile, device)
    return Contender(loop.reset, loop.train, loop.validate, loop.norms, loop.step)
