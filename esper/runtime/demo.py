"""The demonstration: the same hosts, on the same data in the same order, grown and not grown."""

from dataclasses import dataclass
from typing import TextIO

import torch

from esper.runtime.build import DEVICES, find_device, make
from esper.runtime.rollout import Outcome, rollout
from esper.tamiyo.policies import from_mask
from esper.tamiyo.scripted import grow, wait
from esper.tezzeret.choose import CHOICES
from esper.utils.settings import SettingsError, setting
from esper.utils.stats import mean_interval
from esper.utils.terminal import output


@dataclass(frozen=True)
class DemoSettings:
    """Train static and growing hosts on the digits and print a table."""

    num_envs: int = setting(32, "environments, each a host with its own initial numbers", low=6, high=65536)
    seed: int = setting(0, "seed of the environments", low=0, high=2**40)
    blueprint: str = setting("conv8x2", "what the growing policy grows")
    backend: str = setting("auto", "how networks are run", choices=CHOICES)
    device: str = setting("cpu", DEVICES)


def _row(outcome: Outcome) -> str:
    mean, half = mean_interval(outcome.test_accuracy)
    means = (float(v.double().mean()) for v in (outcome.val_accuracy, outcome.added, outcome.fossilized))
    validation, added, fossilized = means
    return (
        f"{outcome.policy:<28}{mean:7.1f} ± {half:3.1f}{validation:15.1f}{added:10.0f}{fossilized:12.2f}"
        f"{outcome.seconds:9.0f}"
    )


def demonstrate(settings: DemoSettings, out: TextIO | None = None) -> tuple[Outcome, Outcome]:
    """Play a static and a growing policy in the same environments.

    Args:
      settings: everything.
      out: where the table goes; None = standard output.

    Returns:
      the static and the growing outcome.

    Raises:
      SettingsError: the blueprint is unknown.
    """
    out = output(out)
    engine = make("digits", settings.num_envs, find_device(settings.device, "--device"), settings.backend)
    host, config = engine.structure.host, engine.config
    try:
        growing = grow(engine.codec, settings.blueprint)
    except ValueError as error:
        raise SettingsError(f"--blueprint: {error}") from None
    out.write(
        f"digits: {settings.num_envs} hosts ({host.name}, {host.num_params} parameters), {config.num_slots} slots "
        f"each, {config.horizon} epochs of {config.steps_per_epoch} SGD steps, {torch.get_num_threads()} threads\n"
        f"{engine.data.describe()}\n"
    )
    policies = (from_mask("static (wait)", wait(engine.codec)), from_mask(f"grown ({settings.blueprint})", growing))
    outcomes = []
    for policy in policies:
        out.write(f"{policy.name}\n")
        outcomes.append(rollout(engine, policy, settings.seed, progress=out)[1])
    out.write(
        f"\n{'policy':<28}{'test accuracy %':>13}{'validation %':>13}{'added':>10}{'fossilized':>12}{'seconds':>9}\n"
    )
    out.writelines(_row(outcome) + "\n" for outcome in outcomes)
    mean, half = mean_interval(outcomes[1].test_accuracy - outcomes[0].test_accuracy)
    out.write(
        f"\ngrowing adds {mean:.1f} ± {half:.1f} percentage points of test accuracy "
        f"(paired over {settings.num_envs} environment seeds, 95 % confidence)\n"
    )
    return outcomes[0], outcomes[1]
