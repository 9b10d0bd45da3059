"""The training command, by algorithm: one that plays, or those that learn from what was recorded."""

from typing import TextIO

import torch

from esper.runtime.distributed import launch
from esper.runtime.fitting import with_num_envs, would_fit
from esper.runtime.policy_checkpoint import AnyLearner
from esper.runtime.runs import places
from esper.runtime.train import check, train
from esper.runtime.train_offline import train_offline
from esper.runtime.train_ranks import train_on_ranks
from esper.runtime.train_settings import AUTO, TrainSettings
from esper.utils.documents import cause
from esper.utils.resilience.causes import OUT_OF_MEMORY, cause_of
from esper.utils.settings import SettingsError
from esper.utils.terminal import output


def learn(settings: TrainSettings, out: TextIO | None = None) -> AnyLearner:
    """Train a policy, by ``--algorithm``; see ``train`` and ``train_offline``, whose errors are raised.

    Under torchrun: as one of several ranks; see ``esper.runtime.train_ranks``.

    Raises:
      SettingsError: an algorithm that learns in one process, under torchrun; or as ``with_num_envs``.
      MemoryError: memory ran out; one line with what would fit.
    """
    if settings.num_envs == AUTO:
        check(settings)
        places(settings)
        settings = with_num_envs(settings, output(out))
    launched = launch()
    if launched is not None and settings.algorithm != "ppo":
        raise SettingsError(f"--algorithm = {settings.algorithm!r}: learns in one process; expected no torchrun")
    if launched is not None:
        return train_on_ranks(settings, launched, out)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.algorithm != "ppo":
        return train_offline(settings, out)
    return _told_what_fits(settings, out)


def _told_what_fits(settings: TrainSettings, out: TextIO | None) -> AnyLearner:
    """``train``; where memory runs out, the error says how many environments would fit."""
    said = ""
    try:
        return train(settings, out)
    except Exception as error:
        if cause_of(error).name != OUT_OF_MEMORY:
            raise
        said = cause(error, 80)
    # only here is the error gone, and with it all that the run held
    raise MemoryError(f"{would_fit(settings)}; {said}")
