"""The training command, by algorithm: one that plays, or those that learn from what was recorded."""

from typing import TextIO

import torch

from esper.runtime.distributed import launch
from esper.runtime.policy_checkpoint import AnyLearner
from esper.runtime.train import train
from esper.runtime.train_offline import train_offline
from esper.runtime.train_ranks import train_on_ranks
from esper.runtime.train_settings import TrainSettings
from esper.utils.settings import SettingsError


def learn(settings: TrainSettings, out: TextIO | None = None) -> AnyLearner:
    """Train a policy, by ``--algorithm``; see ``train`` and ``train_offline``, whose errors are raised.

    Under torchrun: as one of several ranks; see ``esper.runtime.train_ranks``.

    Raises:
      SettingsError: an algorithm that learns in one process, under torchrun.
    """
    launched = launch()
    if launched is not None and settings.algorithm != "ppo":
        raise SettingsError(f"--algorithm = {settings.algorithm!r}: learns in one process; expected no torchrun")
    if launched is not None:
        return train_on_ranks(settings, launched, out)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return train(settings, out) if settings.algorithm == "ppo" else train_offline(settings, out)
