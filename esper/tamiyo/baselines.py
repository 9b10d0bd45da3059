"""Policies that do not learn: random among what is legal, and a rule of thumb.

Both are pure functions over the whole batch and wait for no device. The rule of thumb is esper-lite's, made able to
pass the gates; where it differs, ``HeuristicConfig`` and ``heuristic`` say so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from tensordict import TypedTensorDict
from torch import Tensor

from esper.leyline.actions import NONE, Blend, Codec, Op
from esper.leyline.stages import FAILURE, LIVE, Stage, is_in
from esper.leyline.state import Slots, State
from esper.tamiyo.logits import num_slots, uniform_logits
from esper.utils import rng
from esper.utils.documents import shown

KeyedPolicy = Callable[[Tensor, Tensor], Tensor]
"""Mask of legal actions, bool [E, A], and a key of this step, int64 [E, 2] -> action, int64 [E]."""

NEVER = -(10**6)
"""Epoch of the last cull where there was none."""


def random_legal(codec: Codec) -> KeyedPolicy:
    """Draw a legal operation uniformly, then its arguments uniformly among the legal ones.

    Args:
      codec: actions.

    Returns:
      a policy. Laws: never an illegal action, if WAIT is legal; row i depends on row i's key and mask alone.
    """
    return lambda mask, key: rng.categorical(key, legal_log_probs(codec, mask))


def legal_log_probs(codec: Codec, mask: Tensor) -> Tensor:
    """What ``random_legal`` draws from: log-probabilities [E, A], -inf where illegal."""
    return torch.where(mask, uniform_logits(codec, mask), -torch.inf)


@dataclass(frozen=True)
class HeuristicConfig:
    """Numbers of the rule of thumb; defaults are esper-lite's unless stated.

    A penalty fades by a tenth per epoch and counts from 0.5 on, so a blueprint culled once is skipped for 14 epochs,
    which outlasts the embargo of its slot (esper-lite's, halved every epoch, never gets so far). Every cull is charged,
    also those of the clock and the governor: the clock culls most seeds that fail, before a decision could.

    Attributes:
      rotation: names of the blueprints to try, in turn; empty = all of the codec's.
      blend: how to blend in.
      max_live: seeds growing at once, >= 1 (esper-lite looks at one).
      plateau_epochs: epochs without gain that make a host ready for a seed, unless it is stable already.
      min_epochs: no germination before this epoch.
      cull_after: epochs in a stage before a seed in TRAINING or BLENDING may be culled for its harm.
      max_drop: pp; accuracy lost since the stage began beyond which it is culled, >= 0.
      least_contribution: pp; a seed in PROBATIONARY is kept only if it contributes more.
      embargo: epochs after a cull without germination, in any slot.
      penalty: added to a blueprint's penalty when a seed of it is culled, >= 0.
      decay: a penalty's factor per epoch, in [0, 1] (esper-lite: 0.5).
      threshold: a blueprint whose penalty reaches this is skipped, > 0 (esper-lite: 3.0).
    """

    rotation: tuple[str, ...] = ()
    blend: Blend = Blend.SIGMOID
    max_live: int = 1
    plateau_epochs: int = 3
    min_epochs: int = 5
    cull_after: int = 5
    max_drop: float = 2.0
    least_contribution: float = 0.0
    embargo: int = 5
    penalty: float = 2.0
    decay: float = 0.9
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check every field; raise ``ValueError`` with one line."""
        if not isinstance(self.blend, Blend):
            raise ValueError(f"heuristic.blend = {self.blend!r}: expected a Blend member")
        if not isinstance(self.rotation, tuple) or len(set(self.rotation)) != len(self.rotation):
            raise ValueError(f"heuristic.rotation = {self.rotation!r}: expected a tuple of distinct names")
        least = {"max_live": 1, "plateau_epochs": 0, "min_epochs": 0, "cull_after": 0, "max_drop": 0, "embargo": 0}
        least |= {"penalty": 0, "decay": 0, "threshold": 0, "least_contribution": -100}
        for name, low in least.items():
            value = getattr(self, name)
            if not _is_finite(value) or value < low or (name == "threshold" and value == 0):
                bound = ">" if name == "threshold" else ">="
                raise ValueError(f"heuristic.{name} = {shown(value)}: expected a number {bound} {low}")
        if self.decay > 1:
            raise ValueError(f"heuristic.decay = {self.decay!r}: expected a number <= 1")


def _is_finite(value: object) -> bool:
    """Whether a value is a number that a float holds."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


class Memory(TypedTensorDict):
    """What the rule of thumb remembers, batch [E]."""

    penalty: Tensor  # float32 [E, K]; per blueprint
    turn: Tensor  # int64; place in the rotation that is tried next
    culled_at: Tensor  # int64; epoch in which a seed was last culled, NEVER before one
    held: Tensor  # int64 [E, S]; blueprint of the live seed at the last decision, NONE without one


def init_heuristic(codec: Codec, num_envs: int, device: torch.device | str = "cpu") -> Memory:
    """Memory of nothing, batch [E]."""
    count = torch.zeros(num_envs, dtype=torch.int64, device=device)
    penalty = torch.zeros(num_envs, max(len(codec.blueprint_names), 1), device=device)
    held = torch.full((num_envs, num_slots(codec)), NONE, device=device)
    culled_at = torch.full_like(count, NEVER)
    return Memory(penalty=penalty, turn=count, culled_at=culled_at, held=held, batch_size=[num_envs])


def heuristic(
    config: HeuristicConfig, codec: Codec, memory: Memory, state: State, mask: Tensor
) -> tuple[Memory, Tensor]:
    """One decision per environment: the first of these that is legal, the lowest slot first.

    FOSSILIZE a seed that contributes; ADVANCE a seed; CULL a seed in TRAINING or BLENDING that has harmed for long
    enough, or one in PROBATIONARY that is measured and does not contribute; GERMINATE the next blueprint of the
    rotation, if fewer than ``max_live`` seeds grow, the host is stable or on a plateau, the epoch is late enough and
    the embargo is over; else WAIT. The rotation passes over blueprints that no slot may take and penalised ones; if
    all that may be taken are penalised, the least penalised is taken and the turn stays.

    Args:
      config: numbers.
      codec: actions.
      memory: [E].
      state: [E]; slots, signals and epoch are looked at. Where the epoch is 0, an episode begins and the memory is
        taken as empty.
      mask: bool [E, A]; WAIT is legal.

    Returns:
      the memory for the next epoch (penalties fade once per call), and the action, int64 [E]. Laws: legal under the
      mask; environments do not influence each other; the input memory keeps its bits.

    Raises:
      ValueError: the codec does not know a blueprint of the rotation, or the blend.
    """
    memory = _look_back(config, _renew(memory, state.epoch), state)
    kind, turn = _next_blueprint(config, codec, memory, mask)
    place = (codec.blueprint == kind.unsqueeze(1)) & (codec.blend == int(config.blend))
    action = tend(config, codec, state.slots, mask, place & ready(config, memory, state).unsqueeze(1))
    germinated = codec.op[action] == int(Op.GERMINATE)
    return memory.replace(turn=torch.where(germinated, turn, memory.turn)), action


RANKS = {op: rank for rank, op in enumerate((Op.WAIT, Op.GERMINATE, Op.CULL, Op.ADVANCE, Op.FOSSILIZE), start=1)}
"""What ``tend`` does: the one of the highest rank that it may; others, never."""


def tend(config: HeuristicConfig, codec: Codec, slots: Slots, mask: Tensor, place: Tensor) -> Tensor:
    """The order of what is done, whoever chooses the seeds: see ``heuristic``.

    Args:
      config: numbers.
      codec: actions.
      slots: [E, S].
      mask: bool [E, A].
      place: bool [E, A]; the germinations that are wanted.

    Returns:
      the action, int64 [E].
    """
    op = codec.op
    useful = _by_action(codec, _useful(config, slots)) | (op != int(Op.FOSSILIZE))
    wished = torch.where(op == int(Op.CULL), _by_action(codec, _useless(config, slots)), useful)
    wished = mask & torch.where(op == int(Op.GERMINATE), place, wished)
    rank = torch.zeros_like(op)  # filled in on the device: nothing is uploaded
    for each, score in RANKS.items():
        rank = rank.masked_fill(op == int(each), score)
    return (rank * wished).argmax(1)  # the first of equals


def _renew(memory: Memory, epoch: Tensor) -> Memory:
    """Forget everything where an episode begins."""
    fresh = epoch == 0
    return memory.replace(
        penalty=torch.where(fresh.unsqueeze(1), 0.0, memory.penalty),
        turn=torch.where(fresh, 0, memory.turn),
        culled_at=torch.where(fresh, NEVER, memory.culled_at),
        held=torch.where(fresh.unsqueeze(1), NONE, memory.held),
    )


def _look_back(config: HeuristicConfig, memory: Memory, state: State) -> Memory:
    """Let penalties fade by an epoch, and charge the seeds culled since the last decision."""
    stage, blueprint = state.slots.stage, state.slots.blueprint
    lost = (memory.held != NONE) & is_in(stage, FAILURE)
    kinds = torch.arange(memory.penalty.shape[1], device=stage.device)
    charges = (lost.unsqueeze(2) & (memory.held.unsqueeze(2) == kinds)).sum(1)
    return memory.replace(
        penalty=memory.penalty * config.decay + charges * config.penalty,
        culled_at=torch.where(lost.any(1), state.epoch - 1, memory.culled_at),
        held=torch.where(is_in(stage, LIVE), blueprint, NONE),
    )


def rotation_of(config: HeuristicConfig, codec: Codec) -> list[int]:
    """The rotation as blueprint indices; ``ValueError`` for a name or a blend that is not on offer."""
    names, blends = codec.blueprint_names, {action.blend for action in codec.actions} - {NONE}
    if blends and int(config.blend) not in blends:
        offers = ", ".join(Blend(blend).name for blend in sorted(blends))
        raise ValueError(f"heuristic.blend {config.blend.name}: expected one of {offers}")
    for name in config.rotation:
        if name not in names:
            raise ValueError(f"heuristic.rotation {name!r}: expected names among {', '.join(names)}")
    return [names.index(name) for name in config.rotation or names] or [0]


def _next_blueprint(config: HeuristicConfig, codec: Codec, memory: Memory, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The blueprint to germinate next, int64 [E] (any, where none may be), and the rotation's place after it."""
    rotation = rotation_of(config, codec)
    place = (codec.op == int(Op.GERMINATE)) & (codec.blend == int(config.blend))
    open_ = torch.stack([(mask & place & (codec.blueprint == kind)).any(1) for kind in rotation], dim=1)
    penalty = torch.stack([memory.penalty[:, kind] for kind in rotation], dim=1)
    places = torch.arange(len(rotation), device=mask.device)
    distance = (places - memory.turn.unsqueeze(1)) % len(rotation)

    free = open_ & (penalty < config.threshold)
    some = free.any(1)
    least = torch.where(open_, penalty, torch.inf).amin(1, keepdim=True)
    candidates = torch.where(some.unsqueeze(1), free, open_ & (penalty == least))
    position = torch.where(candidates, distance, len(rotation)).argmin(1)
    kind = torch.zeros_like(position)
    for index, candidate in enumerate(rotation):
        kind = torch.where(position == index, candidate, kind)
    return kind, torch.where(some, (position + 1) % len(rotation), memory.turn)


def ready(config: HeuristicConfig, memory: Memory, state: State) -> Tensor:
    """Whether the time has come for another seed, bool [E]."""
    settled, rested, room, late = conditions(config, memory, state)
    return settled & rested & room & late


def conditions(config: HeuristicConfig, memory: Memory, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whether the host is settled, the embargo over, there is room, and the epoch late enough, bool [E] each."""
    settled = state.signals.stable | (state.signals.plateau >= config.plateau_epochs)
    rested = state.epoch - memory.culled_at >= config.embargo
    room = is_in(state.slots.stage, LIVE).sum(1) < config.max_live
    return settled, rested, room, state.epoch >= config.min_epochs


def _useful(config: HeuristicConfig, slots: Slots) -> Tensor:
    """Seeds that contribute, bool [E, S]."""
    return slots.measured & (slots.contribution > config.least_contribution)


def _useless(config: HeuristicConfig, slots: Slots) -> Tensor:
    """Seeds to cull, bool [E, S]."""
    young = (slots.stage == int(Stage.TRAINING)) | (slots.stage == int(Stage.BLENDING))
    harmful = young & (slots.stage_age >= config.cull_after) & (slots.improvement < -config.max_drop)
    proven = (slots.stage == int(Stage.PROBATIONARY)) & slots.measured
    return harmful | (proven & (slots.contribution <= config.least_contribution))


def _by_action(codec: Codec, flags: Tensor) -> Tensor:
    """A flag of each slot as a flag of each action on it: [E, S] to [E, A]; any, where an action takes no slot."""
    padded = torch.nn.functional.pad(flags, (1, 0))
    return padded[:, codec.slot + 1]
