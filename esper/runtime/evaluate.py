"""The evaluation command: policies side by side on the same environments."""

import sys
from dataclasses import dataclass
from typing import Any, TextIO

from esper.nissa.progress import is_terminal, make_progress
from esper.runtime.compare import compare
from esper.runtime.own_trials import own_policy
from esper.runtime.scene import SceneSettings, build_scene, gradient_of, policies_of
from esper.runtime.table import table
from esper.runtime.yardsticks import growing
from esper.tezzeret.choose import CHOICES
from esper.utils.documents import to_json
from esper.utils.settings import SettingsError, setting
from esper.utils.terminal import output


@dataclass(frozen=True)
class EvaluateSettings(SceneSettings):
    """Compare policies on the same environment seeds."""

    num_envs: int = setting(128, "environments", low=6, high=65536)
    grow: str = setting("", "also evaluate growing this blueprint wherever there is room")
    policy: str = setting("", "also evaluate this policy of your own, py:module:name, a function from an engine to it")
    gradient: bool = setting(False, "also evaluate growing what the gradient of the validation loss is largest for")
    backend: str = setting("auto", "how networks are run", choices=CHOICES)
    json: bool = setting(False, "print one JSON object instead of a table")


def evaluate(settings: EvaluateSettings, out: TextIO | None = None) -> dict[str, Any]:
    """Run every policy on the same environments and report.

    Args:
      settings: everything.
      out: where the table or the JSON object goes; None = standard output.

    Returns:
      the report of ``compare``.

    Raises:
      SettingsError, CheckpointError: the run cannot be read, or a name or number is not allowed.
    """
    out = output(out)
    loaded = settings.loaded()
    scene = build_scene(settings.rules(loaded), settings.num_envs, settings.backend, settings.device)
    policies = policies_of(scene, loaded, settings.greedy)
    if settings.grow:
        try:
            policies.append(growing(scene, settings.grow))
        except ValueError as error:
            raise SettingsError(f"--grow: {error}") from None
    policies += [own_policy(scene.engine, "--policy", settings.policy)] if settings.policy else []
    policies += [gradient_of(scene)] if settings.gradient else []
    progress = make_progress("bar" if is_terminal(sys.stderr) else "off", "policy", sys.stderr)
    report, _ = compare(scene, policies, settings.seed, progress.note)
    progress.close()
    out.write(to_json(report) + "\n" if settings.json else table(report))
    return report
