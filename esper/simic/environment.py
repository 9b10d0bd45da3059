"""The TorchRL environment: the one stateful shell around the pure engine."""

import time
from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from esper.engine import Engine
from esper.kasmina.structure import seed_sizes
from esper.leyline.codes import Refusal
from esper.leyline.config import ConfigError, Determinism
from esper.leyline.events import Transition
from esper.leyline.state import State, validated
from esper.leyline.streams import Stream
from esper.simic.rewards import DEFAULT_REWARD, OwnReward, Reward, RewardMode, RewardParams, build_reward_params, reward
from esper.tamiyo.interface import Interface, translate
from esper.tamiyo.tiles import DRAW_KEY
from esper.utils import rng
from esper.utils.documents import shown

METRICS = ("val_accuracy", "val_loss", "seed_params", "refused", "refusal", "rolled_back")
"""Small numbers beside the observation, float32 [E, 1]: pp, nats, parameters, flag, ``Refusal``, flag. Accuracy and
loss are NaN as long as no epoch of the environment was validated.
"""


Listener = Callable[[State, State, Transition, Reward], None]
"""Told of every step: the state before and after it, what it reported, and the reward."""


def _expect_kinds(**given: tuple[object, type]) -> None:
    """Raise unless every argument is of its kind, or None where that stands for one."""
    for name, (value, kind) in given.items():
        if not isinstance(value, kind) and (value is not None or name == "engine"):
            raise ConfigError(f"EsperEnv: {name} = {shown(value)}: expected {kind.__name__}")


def _as_mode(mode: object) -> RewardMode | OwnReward:
    words = [each.value for each in RewardMode]
    if isinstance(mode, str) and mode in words:
        return RewardMode(mode)
    if not (isinstance(mode, RewardMode) or callable(mode)):
        raise ConfigError(f"EsperEnv: mode = {shown(mode)}: expected {' or '.join(words)}, or a function")
    return mode


class EsperEnv(EnvBase):
    """A batch of growing networks as a TorchRL environment, batch size [E].

    Reads ``action`` int64 [E] (an index into ``interface.codec``; an illegal one, or a number that is no index, is
    WAIT, and the metrics ``refused`` and ``refusal`` tell).
    Writes ``observation`` float32 [E, O] in [-1, 1], ``action_mask`` bool [E, A] (WAIT always legal), ``reward``
    float32 [E, 1], ``done``, ``terminated`` (never) and ``truncated`` (at the horizon: bootstrap with the successor),
    and the ``METRICS``. Where the engine's determinism is strict, also ``draw_key`` int64 [E, 2], by which a policy may
    draw its next action. O and A are those of ``interface``: the engine's own, or a wider one that several tasks share.

    The engine's state stays here, in ``state``: a value to be read, stored or set, never collected. ``ended`` is what
    the last step led to, also where episodes began anew since. A state that is put into ``goes_on_from`` is what the
    next reset of all environments finds: its episodes go on. No step keeps a graph, whatever of the engine's or the
    reward's numbers asks for one; ``engine.step`` itself gives derivatives.
    ``listeners`` are told of every step, by name. ``engine_seconds`` adds up the time spent in the engine.
    """

    def __init__(
        self,
        engine: Engine,
        mode: RewardMode | OwnReward | str = DEFAULT_REWARD,
        params: RewardParams | None = None,
        seed: int = 0,
        interface: Interface | None = None,
        numbers: Tensor | None = None,
    ) -> None:
        """Wrap an engine.

        Args:
          engine: from ``esper.make``.
          mode: which reward: a mode or its word, or a function of one's own.
          params: its numbers; None = the defaults.
          seed: of the first episode's environments; every reset takes the next.
          interface: what the policy sees and says; None = the engine's own.
          numbers: int64 [E]; which environments these are, see ``Engine.init``; None: 0 to E - 1.

        Raises:
          ConfigError: an engine, mode, params or interface that is none; one line.
          ValueError: no such seed.
        """
        _expect_kinds(engine=(engine, Engine), params=(params, RewardParams), interface=(interface, Interface))
        config, device = engine.config, engine.data.train.inputs.device
        super().__init__(device=device, batch_size=torch.Size([config.num_envs]))
        self.engine, self.mode = engine, _as_mode(mode)
        self.engine_seconds = 0.0
        self.params = build_reward_params({}, config, device) if params is None else params
        self.next_seed, self.numbers = seed, numbers
        self.strict = config.deterministic is Determinism.STRICT
        self.goes_on_from: State | None = None
        self.listeners = dict[str, Listener]()
        self.state: State = engine.init(seed, numbers)
        self.ended = self.state
        self.interface = engine.interface if interface is None else interface.to(device)
        self.translation = translate(self.interface, engine.interface)
        self._make_specs()

    def _make_specs(self) -> None:
        num_envs, device = self.engine.config.num_envs, self.device
        num_columns, num_actions = len(self.interface.columns), self.interface.codec.size
        number = Unbounded(shape=(num_envs, 1), device=device, dtype=torch.float32)
        pair = Unbounded(shape=(num_envs, 2), device=device, dtype=torch.int64)
        self.observation_spec = Composite(
            observation=Bounded(-1.0, 1.0, shape=(num_envs, num_columns), device=device, dtype=torch.float32),
            action_mask=Binary(shape=(num_envs, num_actions), dtype=torch.bool, device=device),
            **{name: number.clone() for name in METRICS},
            **({DRAW_KEY: pair} if self.strict else {}),
            shape=(num_envs,),
            device=device,
        )
        self.action_spec = Categorical(num_actions, shape=(num_envs,), device=device)
        self.reward_spec = number.clone()
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool, device=device)
        names = ("done", "terminated", "truncated")
        self.done_spec = Composite({name: flag.clone() for name in names}, shape=(num_envs,), device=device)

    def _describe(self, refusal: Tensor, rolled_back: Tensor) -> dict[str, Tensor]:
        state, engine = self.state, self.engine
        sizes = seed_sizes(engine.structure, state.slots).sum(1)
        refused = refusal != int(Refusal.NONE)
        metrics = (*validated(state.signals), sizes, refused, refusal, rolled_back)
        columns = {name: value.float().unsqueeze(1) for name, value in zip(METRICS, metrics, strict=True)}
        if self.strict:
            columns[DRAW_KEY] = rng.fold_in(state.key, int(Stream.DECISION), state.epoch)
        seen = self.translation.observation(engine.observe(state))
        return {"observation": seen, "action_mask": self.translation.mask(engine.mask(state)), **columns}

    @torch.no_grad()
    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        del kwargs
        seed, self.next_seed = self.next_seed, self.next_seed + 1
        chosen = None if tensordict is None else tensordict.get("_reset", None)
        if chosen is None:
            begun, self.goes_on_from = self.goes_on_from, None
            self.state = self.engine.init(seed, self.numbers) if begun is None else begun
        else:
            self.state = self.engine.reset(self.state, chosen.reshape(-1), seed, self.numbers)
        no = torch.zeros(self.batch_size, dtype=torch.bool, device=self.device)
        out = self._describe(no.long(), no)
        flags = {name: no.unsqueeze(1).clone() for name in ("done", "terminated", "truncated")}
        return TensorDict({**out, **flags}, batch_size=self.batch_size, device=self.device)

    @torch.no_grad()
    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        before, start = self.state, time.perf_counter()
        self.state, event = self.engine.step(before, self.translation.action(tensordict["action"]))
        self.engine_seconds, self.ended = self.engine_seconds + time.perf_counter() - start, self.state
        earned = reward(self.mode, self.params, self.engine.structure, before, self.state, event)
        for listener in self.listeners.values():
            listener(before, self.state, event, earned)
        out = self._describe(event.result.refusal, event.judgement.rolled_back)
        over = (self.state.epoch >= self.engine.config.horizon).unsqueeze(1)
        flags = {"done": over, "terminated": torch.zeros_like(over), "truncated": over.clone()}
        gained = {"reward": earned.total.float().unsqueeze(1)}
        return TensorDict({**out, **flags, **gained}, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        self.next_seed = 0 if seed is None else int(seed)
