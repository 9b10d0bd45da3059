"""HyperParams: every number that may vary. Tensors, each [] or [E]; a new value never recompiles anything.

The class body below is the one table: name, default, unit, range and source of every number.
Sources: a paper; esper-lite (github.com/tachyon-beep/esper-lite, December 2025, "head" its latest); ours = chosen here.
"""

from typing import Annotated, NamedTuple

import torch
from tensordict import TypedTensorDict
from torch import Tensor

from esper.leyline.config import ConfigError
from esper.utils.documents import figure, shown


class Number(NamedTuple):
    """Default, unit, closed range and source of one hyperparameter."""

    default: float
    unit: str
    low: float
    high: float
    source: str


class HyperParams(TypedTensorDict):
    """All numbers of the functional core; each leaf has shape [] or [E] and the configured precision."""

    host_lr: Annotated[Tensor, Number(0.01, "1 per SGD step", 0.0, 100.0, "esper-lite: task constants")]
    seed_lr: Annotated[Tensor, Number(0.01, "1 per SGD step", 0.0, 100.0, "esper-lite: task constants")]
    host_weight_decay: Annotated[Tensor, Number(5e-4, "1", 0.0, 1.0, "esper-lite: optimizers")]
    seed_weight_decay: Annotated[Tensor, Number(0.0, "1", 0.0, 1.0, "esper-lite: optimizers")]
    momentum: Annotated[Tensor, Number(0.9, "1", 0.0, 1.0, "esper-lite: optimizers; SGD")]
    adam_beta1: Annotated[Tensor, Number(0.9, "1", 0.0, 1.0, "Kingma & Ba 2015")]
    adam_beta2: Annotated[Tensor, Number(0.999, "1", 0.0, 1.0, "Kingma & Ba 2015")]
    adam_epsilon: Annotated[Tensor, Number(1e-8, "1", 1e-16, 1.0, "Kingma & Ba 2015; 0 would make 0 / 0 of padding")]
    host_clip: Annotated[Tensor, Number(1.0, "gradient L2 norm", 0.0, float("inf"), "esper-lite, head; inf = off")]
    seed_clip: Annotated[Tensor, Number(1.0, "gradient L2 norm", 0.0, float("inf"), "esper-lite, head; inf = off")]
    warmup_epochs: Annotated[Tensor, Number(0.0, "epochs", 0.0, 1e6, "ours; linear warm-up, 0 = none")]
    final_lr_fraction: Annotated[Tensor, Number(1.0, "1", 0.0, 1.0, "ours; cosine decay's floor, 1 = constant rate")]

    min_training_epochs: Annotated[Tensor, Number(3, "epochs", 0, 1e6, "esper-lite: gate G2")]
    min_gradient_ratio: Annotated[Tensor, Number(0.05, "seed/host norm per parameter", 0.0, 1e6, "esper-lite: gate G2")]
    min_improvement: Annotated[Tensor, Number(0.5, "pp", -100.0, 100.0, "esper-lite: gate G2")]
    blend_epochs: Annotated[Tensor, Number(5, "epochs", 1, 1e6, "esper-lite: blending steps")]
    alpha_target: Annotated[Tensor, Number(1.0, "1", 0.0, 1.0, "esper-lite, head")]
    sigmoid_steepness: Annotated[Tensor, Number(12.0, "1", 0.1, 1e3, "esper-lite: blending; near 0 = linear")]
    min_blending_epochs: Annotated[Tensor, Number(3, "epochs", 0, 1e6, "esper-lite: gate G3")]
    alpha_complete: Annotated[Tensor, Number(0.95, "fraction of the target", 0.0, 1.0, "esper-lite: gate G3")]
    shadowing_epochs: Annotated[Tensor, Number(1, "evaluations", 0, 1e6, "ours: gate G4; 0 = pass straight through")]
    min_contribution: Annotated[Tensor, Number(1.0, "pp", -100.0, 100.0, "esper-lite: gate G5")]
    probation_epochs: Annotated[Tensor, Number(5, "epochs", 1, 1e6, "esper-lite: probation")]
    probation_fraction: Annotated[Tensor, Number(0.1, "fraction of the horizon", 0.0, 1.0, "esper-lite: probation")]
    embargo_epochs: Annotated[Tensor, Number(5, "epochs", 0, 1e6, "esper-lite, head: in the slot")]
    seed_budget: Annotated[Tensor, Number(1e9, "parameters in all seeds", 0, 1e12, "esper-lite: G0; 1e9 = no limit")]

    gradient_memory: Annotated[Tensor, Number(0.9, "1 per epoch", 0.0, 1.0, "esper-lite: gradient EMA decay")]
    vanishing_norm: Annotated[Tensor, Number(1e-7, "gradient L2 norm", 0.0, 1.0, "esper-lite: gradient statistics")]
    exploding_norm: Annotated[Tensor, Number(100.0, "gradient L2 norm", 0.0, 1e12, "esper-lite: gradient statistics")]

    loss_limit: Annotated[Tensor, Number(12.0, "nats", 0.0, 1e12, "esper-lite: governor")]
    loss_sigmas: Annotated[Tensor, Number(6.0, "standard deviations", 0.0, 1e6, "esper-lite: governor")]
    loss_multiple: Annotated[Tensor, Number(3.0, "window means", 0.0, 1e6, "esper-lite: governor")]
    spikes_in_a_row: Annotated[Tensor, Number(3, "epochs", 1, 1e6, "esper-lite: governor")]
    min_history: Annotated[Tensor, Number(10, "epochs", 1, 1e6, "esper-lite, head: governor")]
    guess_fraction: Annotated[Tensor, Number(0.6, "random-guess losses", 0.0, 1.0, "esper-lite: governor")]
    guess_tolerance: Annotated[Tensor, Number(0.065, "random-guess losses", 0.0, 1.0, "esper-lite: governor")]
    snapshot_epochs: Annotated[Tensor, Number(5, "epochs", 1, 1e6, "esper-lite: loop: a snapshot every 5 epochs")]

    plateau_gain: Annotated[Tensor, Number(0.5, "pp", 0.0, 100.0, "esper-lite: tracker")]
    stable_gain: Annotated[Tensor, Number(0.03, "relative loss", 0.0, 1.0, "esper-lite: host stabilisation")]
    stable_loss: Annotated[Tensor, Number(0.05, "relative loss", 0.0, 1.0, "esper-lite, head: regression guard")]
    stable_epochs: Annotated[Tensor, Number(3, "epochs", 1, 1e6, "esper-lite: host stabilisation")]


def numbers(table: type[TypedTensorDict] = HyperParams) -> dict[str, Number]:
    """A table of numbers: name -> default, unit, range, source, in order."""
    return {name: hint.__metadata__[0] for name, hint in table.__annotations__.items()}


def build_hypers(
    overrides: dict[str, float | Tensor], num_envs: int, dtype: torch.dtype, device: torch.device
) -> HyperParams:
    """Defaults with overrides; see ``build_leaves``."""
    return HyperParams(**build_leaves(HyperParams, "hypers", overrides, num_envs, dtype, device), batch_size=[])


def build_leaves(
    table: type[TypedTensorDict],
    place: str,
    overrides: dict[str, float | Tensor],
    num_envs: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """The leaves of a table of numbers: defaults with overrides, copies that share no memory with what was given.

    Args:
      table: a class whose body annotates every leaf with a ``Number``.
      place: what the messages call the table.
      overrides: name -> number, [] tensor or [E] tensor.
      num_envs: E.
      dtype: floating type of every leaf.
      device: where the leaves live.

    Raises:
      ConfigError: unknown name, wrong shape, not finite where the range is, or out of range; one line.
    """
    known = numbers(table)
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{place}.{name}: unknown; known are {', '.join(known)}")
    leaves = {}
    for name, number in known.items():
        given = overrides.get(name, number.default)
        if isinstance(given, bool) or (isinstance(given, Tensor) and given.dtype == torch.bool):
            raise ConfigError(
                f"{place}.{name} = {given!r}: expected a number or a tensor [{num_envs}], not true or false"
            )
        try:
            value = torch.as_tensor(given, dtype=dtype, device=device)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            expected = f"{figure(number.low)} to {figure(number.high)}" if isinstance(given, int) else "a number"
            raise ConfigError(
                f"{place}.{name} = {shown(given)}: expected {expected} or a tensor [{num_envs}]"
            ) from None
        if value.shape not in ((), (num_envs,)):
            raise ConfigError(f"{place}.{name}: shape {list(value.shape)}; expected [] or [{num_envs}]")
        if not bool(((value >= number.low) & (value <= number.high)).all()):
            allowed = f"{figure(number.low)} to {figure(number.high)}"
            raise ConfigError(f"{place}.{name} = {value.tolist()}: expected {allowed} {number.unit}")
        leaves[name] = value.clone()
    return leaves


def over(number: Tensor, dims: int) -> Tensor:
    """View a hyperparameter so that it broadcasts against [E, ...] with ``dims`` more dimensions.

    Args:
      number: [] or [E].
      dims: how many dimensions follow E.

    Returns:
      [1, ...] or [E, 1, ...].
    """
    return number.reshape(number.shape + (1,) * dims)
