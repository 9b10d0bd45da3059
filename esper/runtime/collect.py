"""Playing a round: one episode of every environment of a task, in parts between which it can be left and taken up.

An episode's future is a function of the engine's state, of what the policy saw last, of its memory and of where its
draws stand. All of that is a ``Begun``; a round that goes on from it ends in the bits of one that was not left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector

from esper.leyline.state import State
from esper.nissa.profiles import PROFILES, Profile
from esper.nissa.spans import NO_SPANS, Spans
from esper.runtime.interrupt import Watch, draws_at, draws_now, interruptible, torch_draws_from
from esper.runtime.measuring import Measuring
from esper.runtime.scene import Scene
from esper.runtime.step_recorder import StepRecorder
from esper.runtime.stopwatch import Stopwatch
from esper.simic.environment import EsperEnv
from esper.simic.ppo import GoOn, Learner, make_collector
from esper.simic.ranks import Shard
from esper.tamiyo.interface import Interface
from esper.urza.states import batches_of, state_of, tensors_of

PARTS = 4
"""Into how many parts an episode falls at least, where its length allows."""

JOINT = "/"
"""Between the names of a nested key."""


class Track(NamedTuple):
    """One task of a run: its environments, and what plays them."""

    task: str
    env: EsperEnv
    validation: Stopwatch
    collector: Collector
    batches: Iterator[TensorDictBase]
    go_on: GoOn  # what the policy remembers where an episode is taken up
    measuring: Measuring  # what measures its environments
    recorder: StepRecorder | None = None  # what keeps its steps for a dataset


class Begun(NamedTuple):
    """An episode that was left between two decisions."""

    state: State
    played: TensorDictBase  # [E, t]
    draws: tuple[Tensor, ...]  # where torch's generators stand
    frames: Mapping[str, Tensor] = {}  # [t, E, ...]; what a recorder kept


def part_of(horizon: int) -> int:
    """Decisions between the moments at which an episode can be left: a divisor of its length."""
    longest = max(1, horizon // PARTS)
    return next(length for length in range(longest, 0, -1) if horizon % length == 0)


class Playing(NamedTuple):
    """What a track has to do with besides its scene.

    Attributes:
      shard: which of all environments these are; None = all.
      record: whether its steps are kept for a dataset.
      spans: where parts of a step are recorded.
      profile: what is measured of its environments.
    """

    shard: Shard | None = None
    record: bool = False
    spans: Spans = NO_SPANS
    profile: Profile = PROFILES["off"]


ALL_OF_THEM = Playing()


def make_track(
    scene: Scene, interface: Interface, learner: Learner, watch: Watch, place: int = 0, playing: Playing = ALL_OF_THEM
) -> Track:
    """What plays a scene.

    Args:
      scene: task and engine.
      interface: what the policy sees and says.
      learner: whose policy plays.
      watch: looked at before every step.
      place: which of the learner's tasks it is.
      playing: what else concerns it.
    """
    measuring = Measuring(interruptible(scene.engine, watch), playing.profile, scene.rules.task)
    timed = Stopwatch(measuring.engine, playing.spans)
    numbers = None if playing.shard is None else playing.shard.numbers
    env = EsperEnv(timed.engine, scene.mode, scene.params, interface=interface, numbers=numbers)
    go_on = GoOn()
    collector = make_collector(env, learner.view(place), part_of(scene.engine.config.horizon), go_on, playing.shard)
    recorder = StepRecorder(env) if playing.record else None
    return Track(scene.rules.task, env, timed, collector, iter(collector), go_on, measuring, recorder)


def play(track: Track, seed: int, begun: Begun | None, pause: Callable[[Begun], object]) -> TensorDictBase:
    """One episode of every environment.

    Args:
      track: what is played.
      seed: of the environments and the draws.
      begun: where to take it up; None = at its beginning.
      pause: called after every part.

    Returns:
      [E, T].
    """
    parts = [] if begun is None else [begun.played]
    track.env.next_seed, recorder = seed, track.recorder
    if recorder is not None:
        recorder.begin({} if begun is None else begun.frames)
    with torch_draws_from(seed, track.env.device):
        track.collector.reset_at_each_iter = True
        if begun is not None:
            track.env.ended = begun.state
        if begun is not None and begun.played.shape[1] < track.env.engine.config.horizon:
            track.env.goes_on_from = begun.state
            track.go_on.memory = begun.played[:, -1]["next"]
            draws_at(begun.draws, track.env.device)
        while sum(part.shape[1] for part in parts) < track.env.engine.config.horizon:
            parts.append(next(track.batches).copy())
            track.collector.reset_at_each_iter = False
            frames = {} if recorder is None else recorder.so_far()
            pause(Begun(track.env.ended, _joined(parts), draws_now(track.env.device), frames))
    return _joined(parts)


def _joined(parts: Sequence[TensorDictBase]) -> TensorDictBase:
    whole: TensorDictBase = torch.cat(list(parts), 1) if len(parts) > 1 else parts[0]
    return whole


def to_tensors(begun: Begun, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An episode that was left, as named tensors and what else is needed to read them."""
    named = {f"state.{name}": value for name, value in tensors_of(begun.state).items()}
    for key, value in begun.played.items(include_nested=True, leaves_only=True):
        named["played." + (key if isinstance(key, str) else JOINT.join(key))] = value
    named |= {f"draws.{place}": value for place, value in enumerate(begun.draws)}
    named |= {f"frames.{name}": value for name, value in begun.frames.items()}
    table = {"batches": batches_of(begun.state), "played": list(begun.played.shape)}
    return {f"{prefix}{name}": value.detach().to("cpu", copy=True) for name, value in named.items()}, table


def from_tensors(tensors: dict[str, Tensor], table: dict[str, Any], prefix: str, device: torch.device) -> Begun:
    """An episode that was left, from what ``to_tensors`` made of it.

    Raises:
      KeyError: a tensor is missing.
    """
    found: dict[str, dict[str, Tensor]] = {"state": {}, "played": {}, "draws": {}, "frames": {}}
    for name, value in tensors.items():
        if name.startswith(prefix):
            kind, _, rest = name.removeprefix(prefix).partition(".")
            found[kind][rest] = value
    state = state_of({name: value.to(device) for name, value in found["state"].items()}, table["batches"])
    played = TensorDict({}, batch_size=table["played"], device=device)
    for name, value in found["played"].items():
        played[tuple(name.split(JOINT))] = value.to(device)
    frames = {name: value.to(device) for name, value in found["frames"].items()}
    return Begun(state, played, tuple(found["draws"][str(place)] for place in range(len(found["draws"]))), frames)
