"""What a reward is made of: its numbers, and one function per term; those of potentials are in ``reward_shaping``.

A term maps a ``EnvStep`` to [E]. Everything is elementwise; selection is ``torch.where``. Terms that pay for what an
epoch measured are 0 where the governor rolled that epoch back: its evaluation says nothing of the restored network.
Which modes a term counts in and its bounds are in the table of ``rewards``; the terms of the unshaped modes stand
beside it.
"""

from typing import Annotated, NamedTuple

import torch
from tensordict import TypedTensorDict
from torch import Tensor

from esper.kasmina.structure import Structure, seed_sizes
from esper.leyline.actions import Op
from esper.leyline.codes import Refusal
from esper.leyline.events import Transition
from esper.leyline.hypers import Number, over
from esper.leyline.stages import MERGED, Stage, is_in
from esper.leyline.state import Slots, State
from esper.simic.utility import growth as log_growth


class RewardParams(TypedTensorDict):
    """All numbers of the rewards; each leaf has shape [] or [E]. Weights and costs are positive, terms signed.

    Sources: esper-lite (github.com/tachyon-beep/esper-lite, December 2025; head = its latest version), or ours.
    """

    gamma: Annotated[Tensor, Number(0.995, "1 per step; equal to the learner's", 0.0, 1.0, "esper-lite")]
    shaping_weight: Annotated[Tensor, Number(0.3, "1 per potential", 0.0, 1e3, "esper-lite: PBRS")]
    contribution_weight: Annotated[Tensor, Number(0.05, "1 per pp", 0.0, 1e3, "ours: one scale; esper-lite 1")]
    contribution_cap: Annotated[Tensor, Number(50.0, "pp per slot", 0.01, 100.0, "ours; esper-lite unbounded")]
    fossil_share: Annotated[Tensor, Number(1.0, "of live attribution", 0.0, 1.0, "ours; esper-lite 0 (head 0.7)")]
    enough_contribution: Annotated[Tensor, Number(1.0, "pp", 0.01, 100.0, "esper-lite: gate G5, fossils that count")]
    ratio_limit: Annotated[Tensor, Number(5.0, "contribution per improvement", 0.0, 1e6, "esper-lite")]
    ratio_penalty: Annotated[Tensor, Number(0.3, "1 per slot", 0.0, 1e3, "esper-lite")]
    warning_base: Annotated[Tensor, Number(0.1, "1 per slot", 0.0, 1e3, "esper-lite: blending; head: holding")]
    warning_step: Annotated[Tensor, Number(0.05, "1 per epoch", 0.0, 1e3, "esper-lite: blending; head: holding")]
    warning_cap: Annotated[Tensor, Number(0.4, "1 per slot", 0.0, 1e3, "esper-lite: blending; holding 10, head 0.3")]
    patience: Annotated[Tensor, Number(2, "epochs in PROBATIONARY", 1, 1e6, "esper-lite: warning; its bonus 5")]
    rent_weight: Annotated[Tensor, Number(0.1, "1", 0.0, 1e3, "ours: one scale; esper-lite 0.5")]
    rent_cap: Annotated[Tensor, Number(1.5, "1", 0.0, 1e3, "esper-lite, head; before 8")]
    rent_floor: Annotated[Tensor, Number(200, "host parameters", 1, 1e12, "esper-lite, head")]
    germinate_cost: Annotated[Tensor, Number(0.02, "1", 0.0, 1e3, "esper-lite")]
    advance_cost: Annotated[Tensor, Number(0.01, "1", 0.0, 1e3, "an earlier Esper: intervention costs")]
    fossilize_cost: Annotated[Tensor, Number(0.01, "1", 0.0, 1e3, "esper-lite")]
    cull_cost: Annotated[Tensor, Number(0.005, "1", 0.0, 1e3, "esper-lite")]
    refusal_cost: Annotated[Tensor, Number(0.02, "1", 0.0, 1e3, "ours; esper-lite 0.2 to 1.0, unmasked")]
    fossil_bonus: Annotated[Tensor, Number(0.5, "1", 0.0, 1e3, "esper-lite; and contribution_weight per pp")]
    cull_age: Annotated[Tensor, Number(5, "epochs", 1, 1e6, "esper-lite, head; before 1: younger is none")]
    cull_young: Annotated[Tensor, Number(0.3, "1", 0.0, 1e3, "esper-lite")]
    cull_helping: Annotated[Tensor, Number(0.3, "1", 0.0, 1e3, "esper-lite")]
    cull_helping_slope: Annotated[Tensor, Number(0.05, "1 per pp", 0.0, 1e3, "esper-lite")]
    rollback_penalty: Annotated[Tensor, Number(2.0, "1", 0.0, 1e3, "ours; esper-lite 10")]
    terminal_accuracy: Annotated[Tensor, Number(0.2, "1 per pp", 0.0, 1e3, "ours: one scale; esper-lite 0.05")]
    terminal_fossil: Annotated[Tensor, Number(3.0, "1 per contributing fossil", 0.0, 1e3, "esper-lite")]
    sparse_scale: Annotated[Tensor, Number(1.0, "1", 0.0, 1e3, "esper-lite")]
    sparse_rent: Annotated[Tensor, Number(0.1, "1", 0.0, 1e3, "esper-lite, of extra/500,000; here of ln")]
    minimal_cull: Annotated[Tensor, Number(0.1, "1", 0.0, 1e3, "esper-lite")]
    loss_weight: Annotated[Tensor, Number(1.0, "1", 0.0, 1e3, "ours: one scale; esper-lite 5")]
    loss_scale: Annotated[Tensor, Number(0.1, "nats", 1e-6, 1e6, "esper-lite: default standard deviation")]
    loss_rent: Annotated[Tensor, Number(0.05, "1", 0.0, 1e3, "esper-lite")]
    loss_grace: Annotated[Tensor, Number(3, "epochs without rent", 0, 1e6, "esper-lite")]
    loss_target: Annotated[Tensor, Number(0.0, "nats", 0.0, 1e6, "ours; esper-lite: per task")]
    loss_terminal: Annotated[Tensor, Number(1.0, "1", 0.0, 1e3, "esper-lite")]
    price: Annotated[Tensor, Number(1.0, "pp per e-fold of parameters, in J", 0.0, 1e3, "ours")]


class EnvStep(NamedTuple):
    """One environment step as a reward sees it: the state before the decision, and after the epoch."""

    params: RewardParams
    structure: Structure
    before: State
    after: State
    event: Transition

    @property
    def ends(self) -> Tensor:
        """Bool [E]: the horizon is reached."""
        return self.after.epoch >= self.structure.config.horizon

    @property
    def sane(self) -> Tensor:
        """Bool [E]: the governor let the epoch stand."""
        return ~self.event.judgement.rolled_back

    def done_to(self, *ops: Op) -> Tensor:
        """Bool [E, S]: the slot that one of these operations was carried out on."""
        result = self.event.result
        slots = torch.arange(self.structure.config.num_slots, device=result.slot.device)
        chosen = torch.zeros_like(result.op, dtype=torch.bool)
        for op in ops:
            chosen = chosen | (result.op == int(op))
        return (slots == result.slot.unsqueeze(1)) & chosen.unsqueeze(1)


def growth(params: RewardParams, structure: Structure, slots: Slots, counted: Tensor | None = None) -> Tensor:
    """ln(1 + seed parameters / host parameters), [E]; ``counted`` bool [E, S] leaves seeds out."""
    sizes = seed_sizes(structure, slots)
    sizes = sizes if counted is None else torch.where(counted, sizes, 0)
    return log_growth(sizes.sum(1).to(slots.alpha.dtype), params.rent_floor.clamp(min=structure.host.num_params))


def gains(state: State) -> Tensor:
    """Validation accuracy gained since each seed's birth, [E, S], pp."""
    return state.signals.val_accuracy.unsqueeze(1) - state.slots.birth_accuracy


def credit(params: RewardParams, state: State) -> Tensor:
    """What each slot's measured contribution is worth, [E, S] in +- ``contribution_cap``, pp.

    A negative contribution counts in full. A positive one c counts as far as the network has progressed since the
    seed's birth: not at all without progress p, sqrt(p c) for p < c, else c; c / 2 where the birth preceded the first
    validation. (The geometric mean of a clipped c stays below it.)
    """
    slots, cap = state.slots, over(params.contribution_cap, 1)
    given = slots.contribution.clamp(min=-cap, max=cap)
    gain = gains(state)
    shared = (gain.clamp(min=0.0) * given.clamp(min=0.0)).sqrt()
    worth = torch.where(gain < given, shared, given)
    worth = torch.where(slots.birth_accuracy > 0, worth, given / 2)
    worth = torch.where(given < 0, given, worth)
    return torch.where(is_in(slots.stage, MERGED) & slots.measured, worth, 0.0)


def attribution(step: EnvStep) -> Tensor:
    """Credit of every merged seed; that of a seed culled by decision is given back: its last credit never counts."""
    params, fossil = step.params, step.after.slots.stage == int(Stage.FOSSILIZED)
    now = credit(params, step.after)
    now = torch.where(fossil, over(params.fossil_share, 1) * now, now)
    removed = step.done_to(Op.CULL, Op.CHANGE_BLUEPRINT)
    worth = torch.where(removed, -credit(params, step.before), now).sum(1)
    return torch.where(step.sane, params.contribution_weight * worth, 0.0)


def ratio_penalty(step: EnvStep) -> Tensor:
    """For live seeds without which the network would be much worse, though it hardly improved since their birth."""
    params, slots, gain = step.params, step.after.slots, gains(step.after)
    live = is_in(slots.stage, MERGED) & (slots.stage != int(Stage.FOSSILIZED)) & slots.measured
    most, limit = over(params.ratio_penalty, 1), over(params.ratio_limit, 1)
    excess = 0.02 * (slots.contribution / gain.clamp(min=0.1) - limit).clamp(min=0.0)
    penalty = torch.where(gain > 0.1, torch.minimum(excess, most), most * (slots.contribution / 10).clamp(0.0, 1.0))
    suspect = live & (slots.contribution > 1) & (gain >= 0) & step.sane.unsqueeze(1)
    return -torch.where(suspect, penalty, 0.0).sum(1)


def _warning(params: RewardParams, epochs: Tensor) -> Tensor:
    raised = over(params.warning_base, 1) + over(params.warning_step, 1) * epochs
    return torch.minimum(raised, over(params.warning_cap, 1))


def blending_warning(step: EnvStep) -> Tensor:
    """For seeds in BLENDING while the network is worse than at their birth, rising with the epochs there."""
    slots = step.after.slots
    bad = (slots.stage == int(Stage.BLENDING)) & (gains(step.after) < 0) & step.sane.unsqueeze(1)
    return -torch.where(bad, _warning(step.params, slots.stage_age), 0.0).sum(1)


def probation_warning(step: EnvStep) -> Tensor:
    """For waiting with a contributing seed in PROBATIONARY that could have been fossilized, from ``patience`` on."""
    params, slots = step.params, step.before.slots
    stays = (slots.stage == int(Stage.PROBATIONARY)) & (step.after.slots.stage == int(Stage.PROBATIONARY))
    ready = slots.measured & slots.healthy & slots.in_snapshot & (credit(params, step.before) > 0)
    ready = ready & (slots.contribution >= over(params.enough_contribution, 1))
    late = slots.stage_age - over(params.patience, 1)
    waited = (step.event.result.op == int(Op.WAIT)).unsqueeze(1) & (late >= 0)
    return -torch.where(stays & ready & waited, _warning(params, late), 0.0).sum(1)


def rent(step: EnvStep) -> Tensor:
    """Parameters of all seeds, logarithmically, up to a cap."""
    params = step.params
    return -torch.minimum(params.rent_weight * growth(params, step.structure, step.after.slots), params.rent_cap)


def intervention(step: EnvStep) -> Tensor:
    """A small cost of doing anything."""
    params, result = step.params, step.event.result
    costs = {
        Op.GERMINATE: params.germinate_cost,
        Op.ADVANCE: params.advance_cost,
        Op.RETARGET: params.advance_cost,
        Op.CULL: params.cull_cost,
        Op.FOSSILIZE: params.fossilize_cost,
        Op.CHANGE_BLUEPRINT: params.cull_cost + params.germinate_cost,
    }
    total = torch.zeros_like(step.after.signals.val_accuracy)
    for op, cost in costs.items():
        total = torch.where(result.op == int(op), -cost, total)
    return total


def refusal(step: EnvStep) -> Tensor:
    """An action that could not be carried out."""
    refused = step.event.result.refusal != int(Refusal.NONE)
    return torch.where(refused, -step.params.refusal_cost, 0.0)


def culling(step: EnvStep) -> Tensor:
    """Removing a seed before it could show anything, or one that helps. Never a bonus: cycles must not earn."""
    params, slots = step.params, step.before.slots
    removed = step.done_to(Op.CULL, Op.CHANGE_BLUEPRINT)
    youth = (1 - slots.age / over(params.cull_age, 1)).clamp(0.0, 1.0)
    helped = slots.contribution.clamp(min=0.0)
    helped = torch.where(slots.measured, torch.minimum(helped, over(params.contribution_cap, 1)), 0.0)
    share = (helped / over(params.enough_contribution, 1)).clamp(max=1.0)
    cost = over(params.cull_young, 1) * youth + over(params.cull_helping, 1) * share
    cost = cost + over(params.cull_helping_slope, 1) * helped
    return -torch.where(removed, cost, 0.0).sum(1)


def fossilization(step: EnvStep) -> Tensor:
    """Making a seed permanent: a bonus if this epoch still finds it contributing, else a penalty.

    The bonus grows over ``patience`` epochs of probation. Worse than at the seed's birth: a penalty, and another if
    the network depends on the seed nevertheless.
    """
    params, slots, gain = step.params, step.after.slots, gains(step.after)
    cap = over(params.contribution_cap, 1)
    given = torch.where(slots.measured, slots.contribution.clamp(min=-cap, max=cap), 0.0)
    proven = (step.before.slots.stage_age / over(params.patience, 1)).clamp(0.0, 1.0)
    bonus = (over(params.fossil_bonus, 1) + over(params.contribution_weight, 1) * given) * proven
    value = torch.where(given >= over(params.enough_contribution, 1), bonus, -0.2)
    fallen = -0.5 - (-0.2 * gain).clamp(0.0, 1.0)
    fallen = torch.where((given > 0.1) & (gain < -0.2), fallen - 0.3, fallen)
    value = torch.where(gain < 0, fallen, value)
    paid = step.done_to(Op.FOSSILIZE) & step.sane.unsqueeze(1)
    return torch.where(paid, value, 0.0).sum(1)


def rollback(step: EnvStep) -> Tensor:
    """The governor had to roll the environment back."""
    return torch.where(step.sane, 0.0, -step.params.rollback_penalty)


def terminal_accuracy(step: EnvStep) -> Tensor:
    """At the horizon: validation accuracy."""
    return torch.where(step.ends, step.params.terminal_accuracy * step.after.signals.val_accuracy, 0.0)


def terminal_fossils(step: EnvStep) -> Tensor:
    """At the horizon: every fossilized seed that contributes enough then."""
    params, slots = step.params, step.after.slots
    good = (slots.stage == int(Stage.FOSSILIZED)) & slots.measured
    good = good & (slots.contribution >= over(params.enough_contribution, 1))
    return torch.where(step.ends, params.terminal_fossil * good.sum(1), 0.0)
