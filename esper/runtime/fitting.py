"""How many environments fit: one function predicts what an environment needs, ``--num-envs auto`` asks it.

Predicted is the most that an environment holds in a round: copies of its state and of its episode's decisions, and
beside them what a step works with, or what learning from its decisions does. All of it is found on a few environments.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TextIO, TypeVar

import torch

from esper.leyline.hypers import HyperParams, numbers
from esper.runtime.build import find_device
from esper.runtime.collect import play
from esper.runtime.distributed import launch
from esper.runtime.intake import founding
from esper.runtime.interrupt import Watch
from esper.runtime.learner import make_learner
from esper.runtime.memory_plan import FEWEST, MIB, SPARE, MemoryPlan, plan_of
from esper.runtime.players import Players, shared_interface
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.resume import Origin, source_of
from esper.runtime.scene import Scene, build_scene
from esper.runtime.step_memory import FEW, MORE, Alive, StepMemory, step_memory
from esper.runtime.train_settings import AUTO, TrainSettings
from esper.simic.rewards import RewardParams
from esper.tezzeret.blueprints.document import Document
from esper.utils.memory_room import Room, room
from esper.utils.settings import SettingsError

AnySettings = TypeVar("AnySettings", bound=TrainSettings)

MOST = {"cpu": 1024}
"""Environments that are chosen at most, by device type; beyond them a round only gets longer."""

MOST_ELSEWHERE = 4096

KEPT, KEPT_ELSEWHERE = {"cpu": 2.0}, 1.25
"""Bytes that a process holds for a byte of tensors that come and go, by device type: allocators keep what is freed, in
pieces. Measured with glibc: 1.2 on ``digits``, 2.0 on ``chars``; elsewhere it was not.
"""

DECISIONS = 2
"""Of the episodes that are played to see what learning works with."""


class EnvironmentMemory(NamedTuple):
    """What one environment of every task needs.

    Attributes:
      held: bytes that it holds all the time, at least.
      step: bytes that a step works with, of the task that takes most.
      learning: bytes that learning from an episode works with, of the task that takes most.
      kept: bytes that are held for a byte of both.
    """

    held: int
    step: StepMemory
    learning: int
    kept: float = 1.0

    @property
    def each(self) -> int:
        """Bytes at most: steps and learning follow each other."""
        return self.held + int(self.kept * max(self.step.most, self.learning))


def environment_memory(settings: TrainSettings, source: Origin | None = None) -> EnvironmentMemory:
    """Predict what an environment of a run needs; ``source``: what the run goes on from.

    Raises:
      SettingsError, ConfigError, DatasetError: as ``train``.
    """
    documents, device = founding(settings, source).documents, find_device(settings.device, "--device")
    few = [
        build_scene(replace(rules, documents=documents), FEW, settings.backend, device) for rules in settings.rules()
    ]
    plan: MemoryPlan = plan_of([scene.engine for scene in few])
    steps = [step_memory(scene.engine) for scene in few]
    decisions = max(scene.engine.config.horizon for scene in few)
    share = min(decisions, settings.sequence_chunk or decisions) / settings.minibatches
    low, high = (_learning(settings, documents, count) for count in (FEW, MORE))
    learning = int(max(0, high - low) / ((MORE - FEW) * DECISIONS) * share)
    most = StepMemory(*(max(part) for part in zip(*steps, strict=True)))
    return EnvironmentMemory(plan.each, most, learning, KEPT.get(device.type, KEPT_ELSEWHERE))


def _learning(settings: TrainSettings, documents: tuple[Document, ...], count: int) -> int:
    """Bytes that learning works with after a round of so many environments, all of which are one minibatch."""
    short = replace(settings, num_envs=count, horizon=DECISIONS, minibatches=1, epochs=1, record=False, start_from="")
    device = find_device(settings.device, "--device")
    scenes: list[Scene] = [
        build_scene(replace(rules, documents=documents), count, settings.backend, device) for rules in short.rules()
    ]
    interface = shared_interface(short, scenes)
    learner = make_learner(short, scenes, interface)
    players = Players(short, learner, Watch(), scenes, interface)
    batches = [play(track, 0, None, lambda begun: None) for track in players.tracks]
    players.shutdown()
    found = [0]
    for batch in batches:
        with Alive(list(batch.flatten_keys().values())) as alive:
            learner.update([batch], lambda: None)
        found.append(alive.most)
    return max(found)


def fits(need: EnvironmentMemory, found: Room, device: torch.device) -> tuple[int, bool]:
    """Environments that fit into what is left, a share of the whole kept free; and whether the limit decides.

    Returns:
      0 where fewer than ``FEWEST`` do.
    """
    most = MOST.get(device.type, MOST_ELSEWHERE)
    held = int(max(0.0, found.left - SPARE * found.limit) // need.each)
    return (min(held, most) if held >= FEWEST else 0), held > most


def with_num_envs(settings: AnySettings, out: TextIO) -> AnySettings:
    """The settings with a number of environments; what is chosen for ``auto``, and why, is one line.

    A run that is gone on with has its number already, and keeps it.

    Raises:
      SettingsError: none fits, or nothing says how many would; and as ``environment_memory``.
    """
    if settings.num_envs != AUTO:
        return settings
    source = source_of(settings.resume, settings.out, settings.task)
    if source is not None:
        chosen = int(load_run(source.path).table["settings"]["num_envs"])
        out.write(f"--num-envs auto: {chosen}, as the run has them\n")
        return replace(settings, num_envs=chosen)
    _expect_choice(settings)
    device = find_device(settings.device, "--device")
    need, found = environment_memory(settings), room(device)
    if found is None:
        raise SettingsError("--num-envs auto: nothing here says how much memory is left; expected a number")
    chosen, limited = fits(need, found, device)
    if not chosen:
        raise SettingsError(f"--num-envs auto: {_needs(need)}, {_left(found)}: expected room for {FEWEST}")
    why = f", no more of which are chosen on {device.type}" if limited else ""
    out.write(f"--num-envs auto: {chosen}{why}: {_needs(need)}, {_left(found)}\n")
    return replace(settings, num_envs=chosen)


def would_fit(settings: TrainSettings) -> str:
    """What to say of settings whose run did not find the memory it asked for."""
    device = find_device(settings.device, "--device")
    found = room(device)
    if found is None:
        return "esper estimate says what would fit"
    left = f"{found.left / MIB:,.0f} of the {found.limit / MIB:,.0f} MiB of {found.place} are left"
    try:
        need = environment_memory(settings, source_of(settings.resume, settings.out, settings.task))
    except Exception:  # not even so many fit; what it is that cannot be had may be anything, a thread or a library too
        return f"no number of environments would fit: {left}"
    number = min(fits(need, found, device)[0], settings.num_envs - 1)
    said = f"--num-envs {number}" if number >= FEWEST else "no number of environments"
    return f"{said} would fit: {need.each / MIB:,.2f} MiB each, {left}"


def _expect_choice(settings: TrainSettings) -> None:
    """Raise where nothing is there to choose."""
    if settings.algorithm != "ppo":
        raise SettingsError(f"--num-envs auto: --algorithm {settings.algorithm} plays no round; expected a number")
    if launch() is not None:
        raise SettingsError("--num-envs auto: ranks share environments out; expected a number")
    for table, known in (("engine", numbers(HyperParams)), ("rewards", numbers(RewardParams))):
        for name, value in getattr(settings, table).items():
            values = value.split("+") if isinstance(value, str) else value
            count = len(values) if isinstance(values, Sequence) else 1
            if name in known and count > 1:
                raise SettingsError(
                    f"--num-envs auto: --{table} {name} has {count} values, one for each environment; expected "
                    f"--num-envs {count}"
                )


def _needs(need: EnvironmentMemory) -> str:
    step, learning = need.kept * need.step.most / MIB, need.kept * need.learning / MIB
    parts = f"{need.held / MIB:,.2f} held, {step:,.2f} in a step, {learning:,.2f} learning"
    return f"an environment needs {need.each / MIB:,.2f} MiB ({parts})"


def _left(found: Room) -> str:
    left, kept = found.left / MIB, SPARE * found.limit / MIB
    return f"and {left:,.0f} of the {found.limit / MIB:,.0f} MiB of {found.place} are left, {kept:,.0f} to stay free"
