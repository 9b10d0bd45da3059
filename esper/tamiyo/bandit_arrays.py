"""A bandit's decision for few environments on the CPU, on arrays: what ``decide_on_tensors`` does, bit for bit.

An operation on a small array takes a quarter of the time of one on a small tensor, and a decision has two hundred.
Sums, logarithms and draws, whose last bit is the library's affair, stay with the tensors (``esper.tamiyo.selection``).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esper.leyline.actions import NONE, Codec, Op
from esper.leyline.decisions import Intent, Reason
from esper.leyline.stages import LIVE, Stage
from esper.tamiyo.arms import ArmStatistics, BanditConfig
from esper.tamiyo.bandit_parts import Bandit, BanditMemory
from esper.tamiyo.baselines import NEVER, RANKS, HeuristicConfig
from esper.tamiyo.policies import Account, Decision, PolicyInput
from esper.tamiyo.reasons import SURE
from esper.tamiyo.selection import Standing
from esper.utils.torch_private import parts_of

Array = npt.NDArray[Any]

_LIVE = np.isin(np.arange(max(Stage) + 1), [int(stage) for stage in LIVE])
_RANKS = np.array([RANKS.get(op, 0) for op in sorted(Op)])


class Columns(NamedTuple):
    """A codec's columns [A], and those of the arms [N]."""

    op: Array
    slot: Array
    blueprint: Array
    arms: Array
    arm_slot: Array
    arm_blueprint: Array


class Look(NamedTuple):
    """What is looked at: fields of the state [E] by name, its slots' [E, S], what is legal bool [E, A]."""

    state: dict[str, Any]
    slots: dict[str, Array]
    mask: Array
    live: Array  # bool [E, S]


class Taken(NamedTuple):
    """``esper.tamiyo.selection.Selected``."""

    arm: Array
    reason: Array
    intent: Array
    scores: Array


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()
    return found


def _columns(codec: Codec, arms: Tensor) -> Columns:
    op, slot, blueprint, own = map(_array, (codec.op, codec.slot, codec.blueprint, arms))
    return Columns(op, slot, blueprint, own, slot[own], blueprint[own])


def _look(seen: PolicyInput) -> Look:
    state = parts_of(seen.state)
    looked = ("stage", "blueprint", "stage_age", "measured", "contribution", "improvement")
    own = parts_of(state["slots"])
    slots = {name: _array(own[name]) for name in looked}
    signals = parts_of(state["signals"])
    names = ("epochs_seen", "accuracy_delta", "loss_delta", "plateau")
    fields = {"epoch": _array(state["epoch"])} | {name: _array(signals[name]) for name in names}
    return Look(fields, slots, _array(seen.mask), _LIVE[slots["stage"]])


def decide_on_arrays(bandit: Bandit, memory: BanditMemory, seen: PolicyInput) -> tuple[BanditMemory, Decision]:
    """One decision per environment; see ``esper.tamiyo.bandits.decide``."""
    columns, look = _columns(bandit.codec, bandit.arms), _look(seen)
    statistics, germinated_at = _look_back(columns, memory, look)
    viable, waiting = _viable(bandit, columns, look, germinated_at)
    taken, envs = _select(bandit, statistics, viable, seen), np.arange(len(viable))
    arm = taken.arm
    place = (np.arange(len(columns.op)) == columns.arms[arm][:, None]) & viable.any(1, keepdims=True)
    action = _tend(bandit.rule, columns, look, place)
    planted = columns.op[action] == int(Op.GERMINATE)
    account = _account(bandit.config, columns, look, (statistics, taken, viable), (action, planted, waiting))
    chosen = statistics.chosen.numpy().copy()
    chosen[envs[planted], arm[planted]] += 1
    memory = memory.replace(
        statistics=statistics.replace(chosen=torch.from_numpy(chosen)),
        held=torch.from_numpy(_held_next(columns, look, action)),
        germinated_at=torch.from_numpy(np.where(planted, look.state["epoch"], germinated_at)),
        seen=seen.state.signals.epochs_seen,
    )
    return memory, Decision(torch.from_numpy(action), account=account)


def _look_back(columns: Columns, memory: BanditMemory, look: Look) -> tuple[ArmStatistics, Array]:
    """The statistics with the last epoch's pay, and the epoch of the last germination, [E]."""
    own, fresh, seen = parts_of(memory), look.state["epoch"] == 0, look.state["epochs_seen"]
    held = np.where(fresh[:, None], NONE, _array(own["held"]))
    counts = (seen > np.where(fresh, 0, _array(own["seen"]))) & (seen > 1)
    paid = (held[:, columns.arm_slot] == columns.arm_blueprint) & counts[:, None]
    statistics: ArmStatistics = own["statistics"]
    if paid.any():
        statistics = _pay(statistics, paid, look.state["accuracy_delta"], -look.state["loss_delta"])
    return statistics, np.where(fresh, NEVER, _array(own["germinated_at"]))


def _pay(statistics: ArmStatistics, paid: Array, gained: Array, lost: Array) -> ArmStatistics:
    """See ``esper.tamiyo.arms.pay``."""
    own, (env, arm) = parts_of(statistics), np.nonzero(paid)
    success = ((gained > 0) | (lost < 0))[env]

    def push(name: str, value: Array) -> Tensor:
        ring = _array(own[name]).copy()
        ring[env, arm, :-1] = ring[env, arm, 1:]
        ring[env, arm, -1] = value[env]
        return torch.from_numpy(ring)

    def count(name: str, by: Array | int) -> Tensor:
        number = _array(own[name]).copy()
        number[env, arm] += by
        return torch.from_numpy(number)

    return statistics.replace(
        accuracy=push("accuracy", gained),
        loss=push("loss", lost),
        measured=count("measured", 1),
        successes=count("successes", success),
        failures=count("failures", ~success),
    )


def _viable(bandit: Bandit, columns: Columns, look: Look, germinated_at: Array) -> tuple[Array, Array]:
    """See ``esper.tamiyo.bandits.viable_arms``."""
    config, limits, blueprint = bandit.config, bandit.limits, look.slots["blueprint"]
    held, epoch = _array(limits.held), look.state["epoch"]
    used = (held[np.arange(blueprint.shape[1]), np.maximum(blueprint, 0)] * (blueprint != NONE)).sum(1)
    budget = _array((config.memory_share * limits.budget).reshape(-1, 1))
    fits = (used[:, None] + _array(limits.sizes)[columns.arms]).astype(budget.dtype) <= budget
    room = (look.live.sum(1) < config.max_active)[:, None]
    rested = (epoch - germinated_at >= config.cool_down)[:, None]
    viable, reason = look.mask[:, columns.arms], np.full_like(epoch, int(Reason.NO_PLACE))
    for allowed, otherwise in ((room, Reason.FULL), (rested, Reason.RESTING), (fits, Reason.NO_MEMORY)):
        reason = np.where(viable.any(1), int(otherwise), reason)
        viable = viable & allowed
    return viable, reason


def _select(bandit: Bandit, statistics: ArmStatistics, viable: Array, seen: PolicyInput) -> Taken:
    """See ``esper.tamiyo.selection.select``."""
    own, envs = parts_of(statistics), np.arange(len(viable))
    score, untried = _scores(bandit.config, own), own["chosen"].numpy() == 0
    standing = Standing(statistics, *map(torch.from_numpy, (score, untried, viable)))
    ballot = bandit.strategy(bandit.config, standing, seen.state.epoch, seen.key)
    arm = np.where(viable, _array(ballot.figure), -np.inf).argmax(1)
    best = np.where(~viable | untried, -np.inf, score).max(1)
    explores = untried[envs, arm] | (score[envs, arm] < best)
    intent = np.where(explores, int(Intent.EXPLORE), int(Intent.EXPLOIT))
    return Taken(arm, _array(ballot.reason)[envs, arm], intent, _array(ballot.shown))


def _scores(config: BanditConfig, statistics: Mapping[str, Tensor]) -> Array:
    """See ``esper.tamiyo.arms.scores``."""
    recent = config.recent
    fading, age = _fading(config.decay, recent)
    weight = fading * (age < statistics["measured"].numpy()[..., None])
    total = np.maximum(_sums(weight), 1e-300)
    accuracy, loss = (_sums(weight * statistics[ring].numpy()[..., -recent:]) / total for ring in ("accuracy", "loss"))
    found: Array = config.accuracy_weight * accuracy - config.loss_weight * loss
    return found


@functools.cache
def _fading(decay: float, recent: int) -> tuple[Array, Array]:
    """Weights of the latest epochs, float64 [recent], and their ages."""
    age = torch.arange(recent - 1, -1, -1)
    return (decay ** age.to(torch.float64)).numpy(), age.numpy()


def _sums(values: Array) -> Array:
    return _array(torch.from_numpy(values).sum(2))


def _by_action(columns: Columns, flags: Array) -> Array:
    """A flag of each slot as a flag of each action on it, [E, S] to [E, A]; any, where an action takes no slot."""
    return flags[:, np.maximum(columns.slot, 0)]


def _tend(rule: HeuristicConfig, columns: Columns, look: Look, place: Array) -> Array:
    """See ``esper.tamiyo.baselines.tend``."""
    slots, op = look.slots, columns.op
    stage, measured, contribution = slots["stage"], slots["measured"], slots["contribution"]
    useful = measured & (contribution > rule.least_contribution)
    young = (stage == int(Stage.TRAINING)) | (stage == int(Stage.BLENDING))
    harmful = young & (slots["stage_age"] >= rule.cull_after) & (slots["improvement"] < -rule.max_drop)
    proven = (stage == int(Stage.PROBATIONARY)) & measured & (contribution <= rule.least_contribution)
    wished = _by_action(columns, useful) | (op != int(Op.FOSSILIZE))
    wished = np.where(op == int(Op.CULL), _by_action(columns, harmful | proven), wished)
    wished = look.mask & np.where(op == int(Op.GERMINATE), place, wished)
    found: Array = (_RANKS[op] * wished).argmax(1)
    return found


def _account(
    config: BanditConfig,
    columns: Columns,
    look: Look,
    chosen: tuple[ArmStatistics, Taken, Array],
    done: tuple[Array, Array, Array],
) -> Account:
    """What ``decide_on_tensors`` says of a decision; ``chosen`` are statistics, what was selected, and what was viable;
    ``done`` is the action, whether it germinates, and why not.
    """
    (statistics, taken, viable), (action, planted, waiting) = chosen, done
    op, slot, envs, arm = columns.op[action], columns.slot[action], np.arange(len(action)), taken.arm
    hits = _array(statistics.successes)[envs, arm].astype(np.float64) + config.prior
    rate = (hits / (hits + _array(statistics.failures)[envs, arm] + config.prior)).astype(np.float32)
    confidence = np.where(planted, rate, _confidence(look, op, slot))
    scores = np.full((len(action), len(columns.op)), np.nan)
    scores[:, columns.arms] = np.where(viable & planted[:, None], taken.scores, np.nan)
    young = look.slots["stage"][envs, np.maximum(slot, 0)] != int(Stage.PROBATIONARY)
    reason = np.where(planted, taken.reason, waiting)
    reason = np.where(op == int(Op.FOSSILIZE), int(Reason.CONTRIBUTES), reason)
    reason = np.where(op == int(Op.ADVANCE), int(Reason.GATE_OPEN), reason)
    culled = np.where(young, int(Reason.HARMFUL), int(Reason.NO_CONTRIBUTION))
    return Account(
        confidence=torch.from_numpy(np.where(op == int(Op.WAIT), np.float32(1), confidence)),
        reason=torch.from_numpy(np.where(op == int(Op.CULL), culled, reason)),
        intent=torch.from_numpy(np.where(planted, taken.intent, int(Intent.NEITHER))),
        scores=torch.from_numpy(scores),
    )


def _confidence(look: Look, op: Array, slot: Array) -> Array:
    """Where an action names a slot: see ``esper.tamiyo.reasons.rule_confidence``; the bandit's are surer of others."""
    place = np.arange(len(op)), np.maximum(slot, 0)
    gained = np.where(
        look.slots["measured"][place], look.slots["contribution"][place], look.slots["improvement"][place]
    )
    of_seed = np.minimum(np.abs(gained) / gained.dtype.type(SURE), gained.dtype.type(1)).astype(np.float32)
    plateau = np.minimum(look.state["plateau"].astype(np.float32) / np.float32(SURE), np.float32(1))
    return np.where(op == int(Op.WAIT), 1 - plateau, np.where(op == int(Op.GERMINATE), plateau, of_seed))


def _held_next(columns: Columns, look: Look, action: Array) -> Array:
    """Blueprints of the seeds that grow through the epoch to come, int64 [E, S], from those that grow now."""
    blueprint, slot = look.slots["blueprint"], columns.slot[action][:, None]
    op = columns.op[action][:, None]
    here = slot == np.arange(blueprint.shape[1])
    gone = (here & ((op == int(Op.CULL)) | (op == int(Op.FOSSILIZE)))) | ~look.live
    planted = here & (op == int(Op.GERMINATE))
    return np.where(planted, columns.blueprint[action][:, None], np.where(gone, NONE, blueprint))
