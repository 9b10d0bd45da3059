"""The learned policy: one trunk with memory, factored action heads and a value head, as stock TorchRL modules.

    observation [..., O] -> Linear, LayerNorm, ReLU -> LSTM, LayerNorm -> heads -> logits [..., A], state_value [..., 1]

Sizes and gains are esper-lite's; the flat action is factored as ``logits`` has it. Every number drawn here is a
function of the seed (``esper.utils.rng``).
"""

import math
from dataclasses import dataclass

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import ActorValueOperator, LSTMModule, MaskedCategorical, ProbabilisticActor, ValueOperator

from esper.leyline.actions import COLUMNS, TARGETS, Blend, Codec, Op
from esper.leyline.config import Precision
from esper.tamiyo.amp import NarrowLSTM, narrowing
from esper.tamiyo.logits import HeadLogits, factored_logits, num_slots
from esper.utils import rng

OBSERVATION_LIMIT = 100.0
"""Observations are cut to [-limit, limit]; theirs are bounded columns, so this only ever meets broken ones."""

ACTION_GAIN, VALUE_GAIN, FORGET_BIAS = 0.01, 1.0, 1.0
"""Gain of the last layer of each action head and of the value head, and the LSTM's effective forget bias."""

_STREAM = 0x7A3170
"""Folded into the seed's key, apart from the engine's streams (``esper.leyline.streams``)."""


@dataclass(frozen=True)
class ActorCriticConfig:
    """Sizes of the policy.

    Attributes:
      features: width of the layer before the LSTM, >= 1.
      lstm: width of the LSTM, >= 1.
      head: width of each head's hidden layer, >= 1.
      value_scale: unit of the value head, > 0; of the order of an episode's return, so that the head's own output is
        of the order of 1. It is kept with the parameters.
      precision: with bf16 matrix products are in bfloat16; else all is float32. See ``esper.tamiyo.amp``.
    """

    features: int = 64
    lstm: int = 64
    head: int = 64
    value_scale: float = 1.0
    precision: Precision = Precision.FLOAT32

    def __post_init__(self) -> None:
        """Check every field; raise ``ValueError`` with one line."""
        for name in ("features", "lstm", "head"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"policy.{name} = {value!r}: expected an integer >= 1")
        if not 0 < self.value_scale < math.inf:
            raise ValueError(f"policy.value_scale = {self.value_scale!r}: expected a finite number > 0")


def guarded(observation: Tensor) -> Tensor:
    """An observation within ``OBSERVATION_LIMIT``, whatever it holds."""
    limit = OBSERVATION_LIMIT
    return torch.nan_to_num(observation, nan=0.0, posinf=limit, neginf=-limit).clamp(-limit, limit)


class Features(nn.Module):
    """What the LSTM sees: [..., O] to [..., features].

    Law: a row that holds NaN or infinities gives finite features and leaves the other rows' bits alone.
    """

    def __init__(self, observation_size: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(observation_size, width)
        self.norm = nn.LayerNorm(width)

    @narrowing
    def forward(self, observation: Tensor) -> Tensor:
        """Guard, project, normalise."""
        return torch.relu(self.norm(self.linear(guarded(observation).to(self.linear.weight.dtype))))


class ActionHeads(nn.Module):
    """Logits of all actions: hidden [..., H] and mask bool [..., A] to [..., A]; see ``factored_logits``."""

    op_column: Tensor
    slot_column: Tensor
    blueprint_column: Tensor
    blend_column: Tensor
    target_column: Tensor

    def __init__(self, codec: Codec, config: ActorCriticConfig) -> None:
        super().__init__()
        self.codec, self.slots = codec, max(num_slots(codec), 1)
        for name in COLUMNS:
            self.register_buffer(f"{name}_column", getattr(codec, name).clone(), persistent=False)
        self.op = head_of(config, len(codec.ops))
        self.slot = head_of(config, len(codec.ops) * self.slots)
        self.blueprint = head_of(config, max(len(codec.blueprint_names), 1))
        self.blend = head_of(config, len(Blend))
        self.target = head_of(config, len(TARGETS)) if Op.RETARGET in codec.ops else None

    @narrowing
    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Score every head, then factor."""
        codec = self.codec._replace(
            op=self.op_column,
            slot=self.slot_column,
            blueprint=self.blueprint_column,
            blend=self.blend_column,
            target=self.target_column,
        )
        slot = self.slot(hidden).unflatten(-1, (len(codec.ops), self.slots))
        scores = HeadLogits(self.op(hidden), slot, self.blueprint(hidden), self.blend(hidden))
        if self.target is not None:
            scores = scores._replace(target=self.target(hidden))
        return factored_logits(codec, scores, mask)


class ValueHead(nn.Module):
    """State values in units of the return: hidden [..., H] to [..., 1]."""

    scale: Tensor

    def __init__(self, config: ActorCriticConfig) -> None:
        super().__init__()
        self.head = head_of(config, 1)
        self.register_buffer("scale", torch.tensor(config.value_scale))

    @narrowing
    def forward(self, hidden: Tensor) -> Tensor:
        """Score, in the unit of the return."""
        value: Tensor = self.scale * self.head(hidden)
        return value


def build_actor_critic(config: ActorCriticConfig, codec: Codec, observation_size: int, seed: int) -> ActorValueOperator:
    """A recurrent actor and critic on one trunk.

    Args:
      config: sizes.
      codec: actions.
      observation_size: O >= 1.
      seed: 0 <= seed < 2**64; the parameters are a pure function of it and the sizes.

    Returns:
      a stock ``ActorValueOperator``, float32, on the CPU. It reads "observation" [..., O], "action_mask" bool
      [..., A], "is_init" bool [..., 1] and the recurrent states "recurrent_state_h", "recurrent_state_c"
      [..., 1, lstm]; it writes "logits", "action" (int64), the action's log-probability, "state_value" [..., 1] and
      the next recurrent states. Intermediate keys begin with "_", which collectors do not store.

      ``get_policy_operator()`` is the actor (collector, losses); ``get_value_operator()`` the critic (GAE);
      ``get_value_head()`` the critic of a loss whose actor has just run the trunk on the same TensorDict, as
      ``ClipPPOLoss(actor, policy.get_value_head())`` does: the trunk is computed once. The environment needs
      ``InitTracker`` and ``torchrl.modules.utils.get_primers_from_module(policy)``; over stored time steps, run under
      ``set_recurrent_mode(True)``.

    Raises:
      ValueError: the observation has no columns, or the seed is out of range.

    Laws: torch's global generator is untouched; the first policy gives each legal op nearly equal probability; one
    environment's non-finite observation changes no other's output and makes none non-finite.
    """
    if observation_size < 1:
        raise ValueError(f"observation_size = {observation_size}: expected an integer >= 1")
    key = rng.fold_in(rng.key(seed), _STREAM)
    with torch.random.fork_rng(devices=[]):  # constructors draw; what they draw is overwritten
        features = Features(observation_size, config.features)
        lstm = NarrowLSTM(config.features, config.lstm, batch_first=True)
        norm = nn.LayerNorm(config.lstm)
        heads = ActionHeads(codec, config)
        value = ValueHead(config)
    initialise(nn.ModuleList((features, lstm, norm, heads, value)), key)
    for head in (heads.op, heads.slot, heads.blueprint, heads.blend, *([heads.target] if heads.target else [])):
        rescale(head[-1], ACTION_GAIN)
    rescale(value.head[-1], VALUE_GAIN)
    seeing = seeing_of(features)
    deciding = TensorDictModule(heads, in_keys=["_hidden", "action_mask"], out_keys=["logits"])
    return compose(seeing, lstm, norm, deciding, value)


def initialise(module: nn.Module, key: Tensor) -> None:
    """Overwrite every parameter: orthogonal matrices of gain sqrt(2), zero biases, neutral LayerNorms.

    The weights of an LSTM [4 h, n] are orthogonal as one matrix of gain 1; its forget bias is FORGET_BIAS in total.

    Args:
      module: any composition of Linear, LayerNorm and LSTM.
      key: [2]; parameter i draws from ``fold_in(key, i)``.

    Raises:
      TypeError: another kind of module holds parameters.
    """
    index = 0
    for part in module.modules():
        if not isinstance(part, (nn.Linear, nn.LayerNorm, nn.LSTM)) and list(part.parameters(recurse=False)):
            raise TypeError(f"no rule to initialise a {type(part).__name__}")
        for name, parameter in part.named_parameters(recurse=False):
            parameter.data.copy_(_initial(part, name, parameter, rng.fold_in(key, index)))
            index += 1


def orthogonal(key: Tensor, rows: int, columns: int) -> Tensor:
    """A random orthogonal matrix, float64 [rows, columns]: the shorter side's vectors are orthonormal.

    QR of normal numbers with the signs of R's diagonal made positive, so that it is uniformly distributed. Source:
    F. Mezzadri, "How to generate random matrices from the classical compact groups" (2007).
    """
    tall = rng.normal(key, (max(rows, columns), min(rows, columns)), torch.float64)
    q, r = torch.linalg.qr(tall)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q if rows >= columns else q.T


def _initial(part: nn.Module, name: str, parameter: Tensor, key: Tensor) -> Tensor:
    """First value of one parameter of a Linear, LayerNorm or LSTM."""
    if isinstance(part, nn.LayerNorm):
        return torch.full_like(parameter, 1.0 if name == "weight" else 0.0)
    if parameter.dim() == 2:
        gain = 1.0 if isinstance(part, nn.LSTM) else math.sqrt(2.0)
        return gain * orthogonal(key, *parameter.shape)
    bias = torch.zeros_like(parameter)
    if isinstance(part, nn.LSTM) and name.startswith("bias_ih"):  # gates lie in the order i, f, g, o
        bias[part.hidden_size : 2 * part.hidden_size] = FORGET_BIAS
    return bias


def rescale(layer: nn.Module, gain: float) -> None:
    """Change the gain of an initialised Linear from sqrt(2) to ``gain``."""
    layer.get_parameter("weight").data.mul_(gain / math.sqrt(2.0))


def head_of(config: ActorCriticConfig, width: int) -> nn.Sequential:
    """Linear, ReLU, Linear: [..., lstm] to [..., width]."""
    return nn.Sequential(nn.Linear(config.lstm, config.head), nn.ReLU(), nn.Linear(config.head, width))


def compose(
    seeing: TensorDictModule, lstm: nn.LSTM, norm: nn.LayerNorm, deciding: TensorDictModule, value: ValueHead
) -> ActorValueOperator:
    """Wire the parts by their keys.

    Args:
      seeing: "observation" to "_features".
      lstm, norm: "_features" to "_hidden", with memory.
      deciding: "_hidden", "action_mask" and what else ``seeing`` writes to "logits".
      value: "_hidden" to "state_value".
    """
    return operator_of(trunk_of(seeing, lstm, norm), deciding, value)


def operator_of(trunk: TensorDictSequential, deciding: TensorDictModule, value: ValueHead) -> ActorValueOperator:
    """An actor and critic on a trunk that writes "_hidden" and what else ``deciding`` reads."""
    actor = ProbabilisticActor(
        deciding,
        in_keys={"logits": "logits", "mask": "action_mask"},
        out_keys=["action"],
        distribution_class=MaskedCategorical,
        return_log_prob=True,
    )
    return ActorValueOperator(trunk, actor, ValueOperator(value, in_keys=["_hidden"]))


def seeing_of(features: nn.Module) -> TensorDictModule:
    """A module of observations [..., O] by its keys."""
    return TensorDictModule(features, in_keys=["observation"], out_keys=["_features"])


def trunk_of(seeing: TensorDictModule, lstm: nn.LSTM, norm: nn.LayerNorm) -> TensorDictSequential:
    """What sees and remembers, by its keys: "observation" and the recurrent states to "_hidden" and the next ones."""
    states = ("recurrent_state_h", "recurrent_state_c")
    return TensorDictSequential(
        seeing,
        LSTMModule(
            lstm=lstm,
            in_keys=["_features", *states],
            out_keys=["_memory", *(("next", state) for state in states)],
        ),
        TensorDictModule(norm, in_keys=["_memory"], out_keys=["_hidden"]),
    )
