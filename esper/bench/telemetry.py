"""What telemetry costs: a whole round under each profile, beside one under ``off``; and what the platform costs: a step
of dormant slots with all that surrounds it, beside the same hosts trained and validated alone.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from esper.bench import gates, plain
from esper.bench.case import QUICK, SEED, Bench, Case, Trial
from esper.bench.learning import WITHOUT_END
from esper.engine import Engine
from esper.kasmina.counterfactuals import no_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.learners import learners_of
from esper.nissa.profiles import PROFILES, Profile
from esper.nissa.sinks.fan_out import FanOut
from esper.nissa.sinks.json_lines import LOG, JsonLinesSink
from esper.nissa.sinks.protocol import Opened
from esper.runtime.build import make
from esper.runtime.collect import Playing, Track, make_track, play
from esper.runtime.interrupt import Watch
from esper.runtime.outlets import Outlets
from esper.runtime.scene import Rules, Scene
from esper.runtime.watching import Telling, Watching
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner
from esper.simic.ppo_config import PPOConfig
from esper.simic.rewards import DEFAULT_REWARD, build_reward_params
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tolaria.training import train_epoch

WATCHED_ENVS = 2
"""Environments whose decisions are told to the live page, as in a run that says nothing of it."""

EXPECTED = {
    "gradients": "host_gradient_norm",
    "classes": "class_accuracy_worst",
    "samples": "sharpness",
    "curvature": "curvature",
    "resources": "training_seconds",
}
"""What a profile asks for -> a number of the row that answers it."""


class MeasuredRound:
    """A run's round as ``esper train`` plays it, over and over from the same policy."""

    def __init__(self, engine: Engine, bench: Bench, profile: Profile, stack: ExitStack) -> None:
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = self._folder / LOG
        self.sinks = FanOut({} if profile.is_off else {"json": lambda: Opened(JsonLinesSink(log))})
        stack.callback(self.sinks.close)
        policy = build_actor_critic(ActorCriticConfig(), engine.codec, len(engine.columns), SEED).to(bench.device)
        self.learner = Learner(policy, PPOConfig(target_kl=WITHOUT_END), rounds=1, seed=SEED)
        self._start = deepcopy(policy.state_dict()), deepcopy(self.learner.optimizer.state_dict())
        rewards = build_reward_params({}, engine.config, engine.codec.op.device)
        scene = Scene(Rules(task=bench.task.name), engine, DEFAULT_REWARD, rewards, bench.task)
        self.track: Track = make_track(scene, engine.interface, self.learner, Watch(), 0, Playing(profile=profile))
        stack.callback(self.track.collector.shutdown)
        outlets = Outlets(self._folder)
        stack.callback(outlets.close)
        self._watching = Watching(outlets, WATCHED_ENVS, [], Telling(profile, self.sinks))

    def play(self) -> tuple[TensorDictBase, dict[str, Any]]:
        """The episodes, and the round's row."""
        self.learner.policy.load_state_dict(self._start[0])
        self.learner.optimizer.load_state_dict(deepcopy(self._start[1]))
        self.learner.done = 0
        self._watching.listen([self.track], [])
        batch = play(self.track, SEED, None, lambda begun: None)
        learned = self.learner.update([batch])
        told, _ = self._watching.after([self.track], {"round": 1, **learned})
        row = {"round": 1, **learned, **told}
        self.sinks.round(row)
        return batch, row


class Compared(NamedTuple):
    """A measured round, and how to make one of the same that is not measured."""

    profile: Profile
    unmeasured: Callable[[], TensorDictBase]


def _telemetry(name: str, bench: Bench, envs: int) -> Trial:
    engine, stack = bench.engine(envs), ExitStack()
    measured = MeasuredRound(engine, bench, PROFILES[name], stack)

    def unmeasured() -> TensorDictBase:
        with ExitStack() as own:
            return MeasuredRound(engine, bench, PROFILES["off"], own).play()[0]

    return Trial(measured.play, engine, engine.init(SEED), Compared(PROFILES[name], unmeasured), stack.close)


def _telemetry_gate(trial: Trial) -> str | None:
    """The episodes are those of a round that nobody measured, to the bit, and the row says what the profile asks."""
    batch, row = trial.run()
    compared: Compared = trial.extra
    wrong = gates.batch_wrong(trial, batch)
    reference = compared.unmeasured()
    leaves = batch.items(include_nested=True, leaves_only=True)
    other = [key for key, value in leaves if not _same(value, reference[key])]
    missing = [name for asked, name in EXPECTED.items() if getattr(compared.profile, asked) and name not in row]
    if other:
        place = other[0] if isinstance(other[0], str) else "/".join(other[0])
        return wrong or f"{place} differs from that of a round without telemetry; expected the same bits"
    return wrong or (f"the row lacks {', '.join(missing)}" if missing else None)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all numbers are equal; NaN is what it is where there was no validation yet."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _hosts(bench: Bench, envs: int) -> Trial:
    """The hosts of a task with neither slots nor anything else of the platform: an epoch and one validation pass."""
    settings = {"precision": bench.precision} | (QUICK if bench.quick else {}) | {"slots": ()}
    engine = make(bench.task, envs, bench.device, bench.backend, **settings)
    state, wanted = engine.init(SEED), no_changes(0)
    plan, samples = engine.backend.plan(take_table(state.slots), bench.device), engine.data.validation.samples

    @torch.no_grad()
    def run() -> Any:
        after, epoch = train_epoch(engine.config, engine.backend, engine.hypers, state, plan, engine.data)
        learners, alpha = learners_of(after), after.slots.alpha
        return epoch, engine.backend.evaluate(engine.hypers, plan, learners, alpha, samples, wanted), after

    return Trial(run, engine, state)


def _hosts_gate(trial: Trial) -> str | None:
    """Training and validation of one environment at a time."""
    epoch, scores, after = trial.run()
    env = trial.engine.config.num_envs - 1
    expected = plain.validate(trial.engine, after, env).losses
    gap = float((scores.losses[env].cpu().double() - expected).abs().mean() / expected.mean())
    place = f"relative error of a validation loss of environment {env}"
    return gates.losses_wrong(trial, epoch.loss) or gates.differs(place, gap, 0.0, gates.PASS_TOLERANCE)


def _platform(bench: Bench, envs: int) -> Trial:
    """A decision of every environment, to wait, through the environment that policies play in."""
    engine = bench.engine(envs)
    env = EsperEnv(engine, seed=SEED)
    begun = env.reset()
    state = env.state
    begun["action"] = torch.zeros(envs, dtype=torch.int64, device=bench.device)

    def run() -> TensorDictBase:
        env.state = state
        return env.step(begun.copy())

    return Trial(run, engine, state, env)


def _platform_gate(trial: Trial) -> str | None:
    """Its losses and accuracies are those of the engine's own step, whose gate has judged them."""
    after = trial.run()["next"]
    wait = torch.zeros(trial.engine.config.num_envs, dtype=torch.int64, device=trial.state.key.device)
    state, event = trial.engine.step(trial.state, wait)
    if not torch.equal(after["val_loss"].squeeze(1), event.evaluation.loss.float()):
        return "validation losses are not those of the engine's step"
    wrong = not torch.equal(after["observation"], trial.engine.observe(state))
    return "observations are not those of the engine's step" if wrong else gates.losses_wrong(trial, event.epoch.loss)


HOSTS = Case("hosts-alone", "an epoch and one validation pass of the same hosts, no slots", _hosts, _hosts_gate)
PLATFORM = Case("platform-step", "the same as a step of a policy: mask, reward, observation", _platform, _platform_gate)

CASES = (
    HOSTS,
    PLATFORM,
    *(
        Case(
            f"telemetry-{name}",
            f"training round, profile {name}",
            partial(_telemetry, name),
            _telemetry_gate,
            counted=0,
            probed=False,
        )
        for name in PROFILES
    ),
)
