"""The training command, by algorithm: one that plays, or those that learn from what was recorded."""

from typing import TextIO

from esper.runtime.policy_checkpoint import AnyLearner
from esper.runtime.train import train
from esper.runtime.train_offline import train_offline
from esper.runtime.train_settings import TrainSettings


def learn(settings: TrainSettings, out: TextIO | None = None) -> AnyLearner:
    """Train a policy, by ``--algorithm``; see ``train`` and ``train_offline``, whose errors are raised."""
    return train(settings, out) if settings.algorithm == "ppo" else train_offline(settings, out)
