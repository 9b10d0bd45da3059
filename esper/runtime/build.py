"""Assembly: from a task to an engine."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import torch

from esper.engine import Engine
from esper.kasmina.augment import TRIAL_ROWS, check_own
from esper.kasmina.structure import build_structure
from esper.leyline.config import Config, ConfigError, Precision
from esper.leyline.hypers import build_hypers, numbers
from esper.leyline.words import as_meant
from esper.nissa.public_operations import public
from esper.runtime.tasks import Task, named
from esper.tamiyo.observation import build_scales
from esper.tezzeret.choose import build_backend
from esper.tolaria.data import Dataset, validate
from esper.tolaria.split import limit_validation
from esper.tolaria.variations import with_levels
from esper.utils.documents import shown

DEVICES = "cpu, cuda, cuda:N, or auto = a GPU if there is one"
"""What a device may be called, for help."""


def find_device(device: object, place: str = "device") -> torch.device:
    """A device on which tensors can be made and read.

    Args:
      device: as ``torch.device`` takes it; or "auto", the accelerator that is here, else the CPU.
      place: what a message calls it.

    Raises:
      ConfigError: torch does not know it, or it is not there; one line.
    """
    try:
        found = torch.device(devices()[-1].partition(":")[0] if device == "auto" else device)  # type: ignore[call-overload]
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        named = shown(str(device) if isinstance(device, torch.device) else device)
        raise ConfigError(
            f"{place} = {named}: {reason[:120]}; expected one that is here: {', '.join(devices())}"
        ) from None
    return found


def is_same_device(name: str, other: str) -> bool:
    """Whether two names mean one device here, as ``cpu``, ``cpu:0`` and, without an accelerator, ``auto`` do; what is
    not here is only what it is called.
    """
    try:
        one, two = find_device(name), find_device(other)
    except ConfigError:
        return name == other
    return one.type == two.type and (one.index or 0) == (two.index or 0)


def devices() -> list[str]:
    """Names of the devices that are here."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if accelerator is not None else 0
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(count) if accelerator is not None)]


@public("make")
def make(
    task: str | Task,
    num_envs: int,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    differentiable: bool = False,
    observation: Mapping[str, Any] = MappingProxyType({}),
    **overrides: Any,
) -> Engine:
    """Build an engine.

    Args:
      task: name of a preset, a kind of dataset and its path (``cifar10:PATH``), or a task of your own.
      num_envs: environments E in the batch.
      device: where everything lives; one that is here, or "auto", the accelerator that is here, else the CPU.
      backend: how networks are run: "native" (C++ on CPUs), "inductor" (compiled), "eager" (operation by operation), or
        "auto", the first of them that can (``Engine.describe`` tells which).
      differentiable: whether derivatives are taken from outside; selects "eager". Otherwise hyperparameters are
        detached.
      observation: fields of ``esper.tamiyo.observation.Scales`` by name: units of what a policy sees.
      **overrides: fields of ``Config`` and ``HyperParams`` by name, as ``esper.leyline.words`` reads them; a
        hyperparameter may be an [E] tensor.

    Returns:
      the engine: ``config, hypers, data, codec, init(seed), step(state, action), mask(state), test(state)``,
      ``describe()``. Its ``data`` holds those validation samples that are used.

    Raises:
      ConfigError, DatasetError: one line with the place, the value and what is allowed. What a blueprint that is a
        document became on this backend is validated before anything is trained by it.
    """
    task = task if isinstance(task, Task) else named(task)
    settings = task.settings | overrides
    known = {field.name for field in fields(Config)} - {"num_envs"}
    table = numbers()
    for name in settings:
        if name == "compile":
            raise ConfigError(
                f"make({task.name!r}): unknown setting 'compile'; backend = 'eager' or 'inductor' is meant"
            )
        if name not in known and name not in table:
            near = get_close_matches(name, [*known, *table], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known | set(table)))}"
            raise ConfigError(f"make({task.name!r}): unknown setting {name!r}{hint}")
    if not isinstance(differentiable, bool):
        raise ConfigError(f"differentiable = {shown(differentiable)}: expected True or False")
    meant = {name: as_meant(name, value) for name, value in settings.items() if name in known}
    config = Config(num_envs=num_envs, **{"slots": (), **meant})
    place = find_device(device)
    _expect_type(config.precision, place)
    dtype = config.precision.dtype
    hypers = build_hypers({k: v for k, v in settings.items() if k in table}, num_envs, dtype, place)
    dataset = limit_validation(validate(task.data, task.host.input_shape), config.most_val_samples)
    dataset = with_levels(dataset.to(place, dtype))
    _expect_fit(task, config, dataset)
    hypers = hypers if differentiable else hypers.detach()
    if task.augment is not None:
        check_own(f"make({task.name!r}): augment", task.augment, dataset.validation.held[:TRIAL_ROWS])
    structure = build_structure(config, task.host, task.blueprints, task.objective, place, task.augment)
    runs = build_backend(backend, structure, place, differentiable)
    if any(hasattr(blueprint.train, "document") for blueprint in task.blueprints):
        from esper.tezzeret.stages.admission import admit  # nothing else needs what it imports

        admit(structure, runs.name, place)
    return Engine(structure, runs, hypers.lock_(), dataset, build_scales(observation))


def _expect_type(precision: Precision, device: torch.device) -> None:
    """Raise ``ConfigError`` unless the device computes in a type."""
    lacks = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if precision is Precision.BF16 and lacks:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"config.precision = 'bf16': {name} has no bfloat16; expected 'float16' there")


def _expect_fit(task: Task, config: Config, dataset: Dataset) -> None:
    """Raise ``ConfigError`` unless the task's host and the settings are for such data."""
    if dataset.num_classes != task.host.num_outputs:
        raise ConfigError(
            f"make({task.name!r}): dataset {dataset.name} has {dataset.num_classes} classes, "
            f"host {task.host.name} has {task.host.num_outputs} outputs"
        )
    if dataset.has_tokens != task.host.takes_tokens:
        kinds = {True: "tokens", False: "floating features"}
        raise ConfigError(
            f"make({task.name!r}): dataset {dataset.name} has {kinds[dataset.has_tokens]}, "
            f"host {task.host.name} takes {kinds[task.host.takes_tokens]}"
        )
    if dataset.has_tokens and task.augment is not None:
        raise ConfigError(f"make({task.name!r}): augment: dataset {dataset.name} has tokens; expected floating samples")
    if dataset.has_tokens and "shift" in dataset.variation:
        raise ConfigError(f"make({task.name!r}): dataset {dataset.name} has tokens; a shift is for classes of samples")
    if len(dataset.input_shape) != 3 and (config.crop_padding or config.mirror):
        asked = f"crop_padding = {config.crop_padding}" if config.crop_padding else "mirror = True"
        raise ConfigError(
            f"make({task.name!r}): config.{asked} is for images; dataset {dataset.name} has samples of shape "
            f"{dataset.input_shape}; expected crop_padding = 0, mirror = False"
        )
