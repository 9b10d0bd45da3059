"""The native backend: whole networks in one C++ library, sample packs in vector registers; float32 on a CPU."""

from functools import partial

import torch
from torch import Tensor

from esper.kasmina.objectives import cross_entropy
from esper.kasmina.structure import Structure
from esper.leyline.config import ConfigError, Precision
from esper.leyline.learners import Learners
from esper.tezzeret import eager
from esper.tezzeret.backend import Backend, BackendError, sending_lists
from esper.tezzeret.batches import Batch
from esper.tezzeret.guard import without_derivatives
from esper.tezzeret.native.epoch import epoch, minibatch_step, watched_epoch
from esper.tezzeret.native.evaluate import evaluate
from esper.tezzeret.native.library import MOST_TOKENS, library
from esper.tezzeret.native.lower import lower_structure
from esper.tezzeret.native.plan import Plan, make_plan
from esper.tezzeret.native.update import KNOWN
from esper.tezzeret.toolchain import check_isa


def build(structure: Structure, device: torch.device) -> Backend:
    """The native backend of a structure.

    Raises:
      ConfigError: ``ESPER_ISA`` names an instruction set that this machine lacks.
      BackendError: another device or dtype, no library, a setting it does not know, or a module it cannot capture.
    """
    _check(structure, device)
    network = lower_structure(structure)
    recompute = ("recompute: changes nothing here: kernels keep less than what recomputing would keep",)
    of_no_use = recompute if structure.config.recompute else ()

    def forward(plan: Plan, learners: Learners, alphas: Tensor, batch: Batch) -> tuple[Tensor, Learners]:
        return eager.forward(structure, eager.plan(structure, plan.table, device), learners, alphas, batch)

    backend = Backend(
        name="native",
        plan_with=sending_lists(partial(make_plan, structure)),
        forward=forward,
        minibatch_step=partial(minibatch_step, network),
        epoch=partial(epoch, network),
        evaluate=partial(evaluate, network),
        watched_epoch=partial(watched_epoch, network),
        describe=lambda: ("native: the whole network in one C++ library", *of_no_use),
        independent=True,
    )
    return without_derivatives(backend)


def _check(structure: Structure, device: torch.device) -> None:
    config = structure.config
    try:
        check_isa()
    except ValueError as error:
        raise ConfigError(str(error)) from None

    def require(holds: bool, found: str, expected: str, setting: str = "") -> None:
        if not holds:
            raise BackendError(f"backend 'native': {found}; expected {expected}", setting)

    require(device.type == "cpu", f"device {device.type}", "cpu", "device")
    require(config.precision is Precision.FLOAT32, f"precision {config.precision.value}", "float32", "precision")
    require(config.accumulate == 1, f"accumulate = {config.accumulate}", "1", "accumulate")
    rules = {"host_optimizer": structure.host_optimizer, "seed_optimizer": structure.seed_optimizer}
    for setting, rule in rules.items():
        require(rule.name in KNOWN, f"optimizer {rule.name!r}", " or ".join(KNOWN), setting)
    plain = structure.objective is cross_entropy()
    require(plain, f"objective {structure.objective.name!r} with settings of its own", "plain cross-entropy")
    if structure.host.takes_tokens:
        found = structure.host.num_outputs
        require(found <= MOST_TOKENS, f"{found} tokens", f"at most {MOST_TOKENS}")
    require(library() is not None, "no built library (no C++ compiler, or ESPER_NATIVE=0)", "one")
