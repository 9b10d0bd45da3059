"""The training command: PPO on a preset, in rounds, each a function of the policy before it and its number alone.

That is what makes an interrupted and resumed run end in the same bits: the state of a run between rounds is the
learner, nothing else. A run directory holds ``config.json``, ``versions.json``, ``metrics.jsonl`` and
``checkpoint.npz``.
"""

import json
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import tensordict
import torch
import torchrl
from tensordict import TensorDictBase

from esper.runtime.build import make
from esper.runtime.policies import learner_tensors, restore_learner
from esper.runtime.tasks import TASKS
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, PPOConfig, make_collector
from esper.simic.rewards import RewardMode, build_reward_params
from esper.tamiyo.policy import PolicyConfig, build_policy
from esper.urza import checkpoint
from esper.utils.settings import SettingsError, setting


@dataclass(frozen=True)
class TrainSettings:
    """Train a policy that decides when to grow."""

    task: str = setting("digits", "task preset", choices=tuple(TASKS))
    num_envs: int = setting(32, "environments per round", low=2, high=65536)
    rounds: int = setting(24, "PPO rounds, one episode of every environment each", low=1)
    horizon: int = setting(0, "decisions per episode; 0 = the preset's", low=0, high=100_000)
    seed: int = setting(0, "seed of policy and environments", low=0, high=2**31)
    reward: str = setting("shaped", "reward", choices=tuple(mode.value for mode in RewardMode))
    lr: float = setting(1e-3, "peak learning rate", low=0.0, high=1.0)
    gamma: float = setting(0.995, "discount per decision", low=0.0, high=1.0)
    gae_lambda: float = setting(0.95, "decay of the advantage estimate", low=0.0, high=1.0)
    clip: float = setting(0.2, "range of the probability ratio", low=0.0, high=10.0)
    epochs: int = setting(4, "passes over a round", low=1, high=100)
    minibatches: int = setting(4, "parts of a pass", low=1, high=1024)
    entropy_start: float = setting(0.05, "entropy bonus at the start", low=0.0)
    entropy_end: float = setting(0.005, "entropy bonus at the end", low=0.0)
    value_scale: float = setting(20.0, "unit of the critic, of the order of an episode's return", low=1e-6, high=1e9)
    features: int = setting(64, "width of the feature layer", low=1)
    lstm: int = setting(64, "width of the memory", low=1)
    compile: bool = setting(True, "compile where a compiler is at hand")
    out: str = setting("runs/digits", "run directory")
    resume: bool = setting(False, "go on from the run directory's checkpoint")

    def ppo(self) -> PPOConfig:
        """The learner's numbers."""
        names = ("lr", "gamma", "gae_lambda", "clip", "epochs", "minibatches", "entropy_start", "entropy_end", "value_scale")
        return PPOConfig(**{name: getattr(self, name) for name in names})


class Stopped(Exception):
    """The process was asked to stop."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into ``Stopped`` while the block runs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block is done, so that a round is recorded whole or not at all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def torch_draws_from(seed: int) -> Iterator[None]:
    """Let torch's global generator, which TorchRL samples actions from, start at ``seed`` within the block."""
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        yield


def train(settings: TrainSettings, out: TextIO = sys.stdout) -> Learner:
    """Train a policy.

    Args:
      settings: everything.
      out: where progress goes.

    Returns:
      the learner after its last round.

    Raises:
      SettingsError: the run directory holds another run, or nothing to resume.
    """
    folder = Path(settings.out)
    overrides: dict[str, Any] = {"horizon": settings.horizon} if settings.horizon else {}
    engine = make(settings.task, settings.num_envs, compile="auto" if settings.compile else False, **overrides)
    params = build_reward_params({"gamma": settings.gamma}, engine.config)
    env = EsperEnv(engine, RewardMode(settings.reward), params)
    sizes = PolicyConfig(settings.features, settings.lstm, value_scale=settings.value_scale)
    policy = build_policy(sizes, engine.codec, len(engine.columns), settings.seed)
    learner = Learner(policy, settings.ppo(), settings.rounds, settings.seed)
    _open_run(folder, settings, learner)
    collector = make_collector(env, policy)
    batches, start, first = iter(collector), time.perf_counter(), learner.done
    saved = first
    try:
        with stoppable():
            while learner.done < settings.rounds:
                row = _round(settings, env, batches, learner)
                with undisturbed():
                    _record(folder, settings, learner, row)
                    saved = learner.done
                left = (time.perf_counter() - start) / (learner.done - first) * (settings.rounds - learner.done)
                out.write(_line(settings, learner.done, row, left))
                out.flush()
    except Stopped as stopped:
        out.write(f"{stopped}: stopped after round {saved}; --resume true goes on from {folder}\n")
    finally:
        collector.shutdown()
    return learner


def _round(
    settings: TrainSettings, env: EsperEnv, batches: Iterator[TensorDictBase], learner: Learner
) -> dict[str, float]:
    """One episode of every environment, and what is learned from it."""
    number, begun = learner.done, time.perf_counter()
    env.next_seed, env.engine_seconds = round_seed(settings.seed, number), 0.0
    with torch_draws_from(round_seed(settings.seed, number)):
        batch = next(batches)
    collected = time.perf_counter()
    learned = learner.update(batch)
    ended = time.perf_counter()
    after = batch["next"]
    row = {
        "round": number + 1,
        "return": float(after["reward"].sum(1).mean()),
        "final_accuracy": float(after["val_accuracy"][:, -1].mean()),
        "seed_params": float(after["seed_params"][:, -1].mean()),
        "refused": float(after["refused"].sum()),
        "rolled_back": float(after["rolled_back"].sum()),
        "seconds": ended - begun,
        "collect_seconds": collected - begun,
        "learn_seconds": ended - collected,
        "host_seconds": env.engine_seconds,
    }
    return row | learned


def round_seed(seed: int, number: int) -> int:
    """Seed of a round's environments and draws; training uses even numbers, held-out evaluation odd ones."""
    return 2 * (seed * 1_000_003 + number)


def _line(settings: TrainSettings, done: int, row: dict[str, float], left: float) -> str:
    return (
        f"round {done:4d}/{settings.rounds}  return {row['return']:7.2f}  accuracy {row['final_accuracy']:5.1f} %  "
        f"entropy {row['entropy']:5.2f}  kl {row['kl']:6.4f}  {row['seconds']:5.1f} s  left {left:5.0f} s\n"
    )


def _identity(settings: TrainSettings) -> dict[str, Any]:
    """The settings that decide what a run computes."""
    return {name: value for name, value in asdict(settings).items() if name not in ("resume", "out")}


def _open_run(folder: Path, settings: TrainSettings, learner: Learner) -> None:
    path, wanted = folder / "checkpoint.npz", _identity(settings)
    if settings.resume:
        loaded = checkpoint.load(path)
        if loaded.table["settings"] != wanted:
            changed = [name for name, value in wanted.items() if loaded.table["settings"].get(name) != value]
            raise SettingsError(f"--resume true: {path} was written with other settings ({', '.join(changed)})")
        restore_learner(learner, loaded)
        return
    if path.exists():
        raise SettingsError(f"--out {folder}: holds a run already; --resume true goes on with it")
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "torchrl": torchrl.__version__, "tensordict": tensordict.__version__}
    versions |= {"python": platform.python_version(), "machine": platform.machine()}
    (folder / "config.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    (folder / "metrics.jsonl").write_text("")
    _save(folder, settings, learner)


def _record(folder: Path, settings: TrainSettings, learner: Learner, row: dict[str, float]) -> None:
    """Write the checkpoint, then the metrics' line: a line stands for a round that can be resumed."""
    _save(folder, settings, learner)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _save(folder: Path, settings: TrainSettings, learner: Learner) -> None:
    table = {"settings": _identity(settings), "done": learner.done}
    checkpoint.save(folder / "checkpoint.npz", learner_tensors(learner), table)
