"""Measuring a task's episodes as a profile asks: an engine that shows its gradients now and then, and a listener.

What is measured is reduced on the device, copied out in the background and read when the round is over; no step waits
for it, and nothing of it goes into what is computed. With the profile ``off`` the engine is the one that was given.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from esper.engine import Engine
from esper.leyline.events import Epoch, Transition
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners
from esper.leyline.state import State
from esper.nissa.class_measures import measure_classes
from esper.nissa.event_record import Event, occurrence
from esper.nissa.profiles import PROFILES, Profile
from esper.runtime.kept_gradients import (
    GradientNames,
    KeptGradients,
    keep_gradients,
    said_of_hosts,
    said_of_seeds,
    totals,
)
from esper.runtime.landscape import landscape
from esper.simic.environment import EsperEnv
from esper.simic.rewards import Reward
from esper.tezzeret.backend import BackendError, Plan, WatchedBatches
from esper.tezzeret.batches import Batches
from esper.tezzeret.fallback import is_of_surroundings
from esper.utils.documents import cause
from esper.utils.download import Download

logger = logging.getLogger("esper")

MOSTLY_VANISHING, SOME_EXPLODING, UNSOUND = 0.5, 0.01, 0.5
"""Shares of a host's elements above which its gradients are told of, and the health below which they are."""

GRADIENTS, LANDSCAPE = "gradients are", "the loss around networks is"
"""What may turn out not to be measurable, as a warning has it."""

ENVIRONMENT = "environment/"
"""Before the name of what is known of every environment by itself."""


class MeasuredEpoch(NamedTuple):
    """One measured epoch, on its way."""

    decision: int
    seconds: float
    numbers: Download


class Measuring:
    """What measures one task's episodes.

    Attributes:
      engine: the one to play on.
      profile: what is measured.
      training_seconds: of the round's epochs, where calls wait.
    """

    def __init__(self, engine: Engine, profile: Profile = PROFILES["off"], task: str = "") -> None:
        """Take an engine.

        Args:
          engine: that is played on otherwise.
          profile: what is measured.
          task: for events.
        """
        self.profile, self.training_seconds, self._task, self._given = profile, 0.0, task, engine
        self._names = GradientNames(engine.structure, engine.data.train.targets.device)
        self._decision, self._listens, self._broken = 0, False, set[str]()
        self._kept: KeptGradients | None = None
        self._measured: list[MeasuredEpoch] = []
        backend = engine.backend
        self.engine = engine if profile.is_off else replace(engine, backend=backend._replace(epoch=self._epoch))
        if profile.gradients and backend.watched_epoch is None:
            logger.warning("telemetry: gradients are not measured: backend %s shows none here", backend.name)

    @property
    def _count(self) -> int:
        """Environments whose gradients are measured."""
        num_envs = self._given.config.num_envs
        return min(self.profile.environments, num_envs) if self.profile.environments else num_envs

    def begin(self, env: EsperEnv, played: int) -> None:
        """Before a round.

        Args:
          env: that plays on ``engine``.
          played: decisions of it that were played before.
        """
        if self.profile.is_off:
            return
        self._decision, self._listens, self._measured, self.training_seconds = played, True, [], 0.0
        env.listeners["measuring"] = self

    def _is_due(self) -> bool:
        """Whether the epoch that begins is measured: every so many decisions, counted back from the last one."""
        left = self._given.config.horizon - 1 - self._decision
        shown = self._given.backend.watched_epoch is not None and GRADIENTS not in self._broken
        return self._listens and shown and bool(self.profile.gradients) and left % self.profile.gradients == 0

    def _epoch(
        self, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batches: Batches
    ) -> tuple[Learners, Epoch]:
        """The backend's epoch, watched where that is due."""
        begun, arguments = time.perf_counter(), (hypers, plan, learners, alphas)
        found = self._watched(arguments, batches) if self._is_due() else None
        result = self._given.backend.epoch(*arguments, batches) if found is None else found
        self.training_seconds += time.perf_counter() - begun
        return result

    def _watched(
        self, arguments: tuple[HyperParams, Plan, Learners, Tensor], batches: Batches
    ) -> tuple[Learners, Epoch] | None:
        """The epoch with its gradients; None where they could not be shown, which is said once."""
        watched_epoch = self._given.backend.watched_epoch
        assert watched_epoch is not None
        watched = WatchedBatches(batches, None, partial(keep_gradients, self._count))
        try:
            learners, epoch, self._kept = watched_epoch(*arguments, watched)
        except BackendError:
            raise
        except Exception as error:  # whatever a kernel may raise; the plain epoch has its own way out
            self._give_up(GRADIENTS, error)
            return None
        return learners, epoch

    def _give_up(self, what: str, error: Exception) -> None:
        """Measure something no more, with one warning; raise what another way of measuring could not help."""
        if is_of_surroundings(error):
            raise error
        self._broken = {*self._broken, what}
        logger.warning("telemetry: %s not measured any more: %s", what, cause(error))

    def _landscape(self, state: State) -> dict[str, Tensor]:
        """What the profile asks of the loss around the networks; nothing where a module of theirs cannot tell."""
        asked = self.profile.samples or self.profile.curvature
        if not asked or LANDSCAPE in self._broken or self._decision != self._given.config.horizon:
            return {}
        try:
            values = landscape(self._given, state, self.profile)
        except Exception as error:  # modules are users' own, and may lack derivatives of the second order
            self._give_up(LANDSCAPE, error)
            return {}
        return totals("", values, torch.ones_like(next(iter(values.values())), dtype=torch.bool))

    def __call__(self, before: State, state: State, event: Transition, earned: Reward) -> None:
        """After a decision: reduce what was kept, and let it leave the device."""
        del before, earned
        self._decision += 1
        kept, self._kept = self._kept, None
        found = {} if kept is None else self._numbers(kept, event)
        found |= self._landscape(state)
        if found:
            self._measured.append(MeasuredEpoch(self._decision, time.time(), Download(found)))

    def _numbers(self, kept: KeptGradients, event: Transition) -> dict[str, Tensor]:
        said, each = said_of_hosts(self._names, self.profile, kept)
        said |= said_of_seeds(self._names, kept, event.life.before[: self._count])
        if self.profile.classes:
            said |= self._classes(event.evaluation.class_accuracy)
        return said | {ENVIRONMENT + name: column for name, column in each.items()}

    def _classes(self, accuracy: Tensor) -> dict[str, Tensor]:
        """Accuracy by class, of all environments; nothing where targets are no classes."""
        targets = self._given.data.validation.targets
        if targets.is_floating_point():
            return {}
        present = torch.zeros_like(accuracy[0], dtype=torch.bool).index_fill(0, targets.flatten().long(), True)
        found = measure_classes(accuracy, present)
        spread = {"variance": found.variance, "worst": found.worst, "gap": found.gap}
        everyone = torch.ones_like(found.worst, dtype=torch.bool)
        pairs = torch.stack((torch.where(present, found.accuracy, 0.0), present.to(accuracy.dtype)), 1).unbind(0)
        said = {f"class_accuracy_{number}": pair for number, pair in enumerate(pairs)}
        return said | totals("class_accuracy_", spread, everyone)

    def after(self, env: EsperEnv, round: int) -> tuple[dict[str, float], list[Event]]:
        """After a round.

        Args:
          env: that played it.
          round: its number, from 1.

        Returns:
          numbers of the round's row, means over environments and measured decisions; and events of gradients that are
          out of the ordinary.
        """
        env.listeners.pop("measuring", None)
        self._listens, measured = False, self._measured
        self._measured = []
        arrived = [(each, each.numbers.read()) for each in measured]
        numbers = means(found for _, found in arrived)
        if self.profile.resources:
            numbers["training_seconds"] = self.training_seconds
        return numbers, [event for each, found in arrived for event in self._anomalies(each, found, round)]

    def _anomalies(self, measured: MeasuredEpoch, found: Mapping[str, Tensor], round: int) -> Iterable[Event]:
        if ENVIRONMENT + "health" not in found:
            return
        columns = [found[ENVIRONMENT + name].tolist() for name in ("vanishing", "exploding", "health")]
        for environment, (vanishing, exploding, health) in enumerate(zip(*columns, strict=True)):
            if vanishing > MOSTLY_VANISHING or exploding > SOME_EXPLODING or health < UNSOUND:
                place = {"task": self._task, "environment": environment, "decision": measured.decision}
                told = {"vanishing": vanishing, "exploding": exploding, "health": health}
                yield occurrence("gradient.anomaly", round, measured.seconds, **place, **told)


def means(found: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Sums and counts [2] by name, as means; what has no count has no mean."""
    sums = dict[str, Tensor]()
    for each in found:
        for name, pair in each.items():
            if not name.startswith(ENVIRONMENT):
                sums[name] = sums[name] + pair if name in sums else pair
    return {name: float(whole / count) for name, (whole, count) in sums.items() if count > 0}
