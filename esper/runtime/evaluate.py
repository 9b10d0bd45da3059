"""The evaluation command: policies side by side on the same environments."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from esper.leyline.actions import Codec
from esper.nissa.progress import is_terminal, make_progress
from esper.nissa.records import record_of
from esper.runtime.arm_files import keep_statistics, recall_statistics
from esper.runtime.compare import compare
from esper.runtime.own_trials import own_policy
from esper.runtime.policies import NAMED, USUAL, bandit_of, gradient_of, names_of, policies_of
from esper.runtime.policy_checkpoint import load_policy, load_run_to_play
from esper.runtime.rollout import Outcome
from esper.runtime.scene import Scene, SceneSettings, build_scene
from esper.runtime.table import table
from esper.runtime.yardsticks import STATIC, growing
from esper.tamiyo.policies import LEARNED, Policy
from esper.tamiyo.selection import STRATEGIES
from esper.tezzeret.choose import CHOICES
from esper.utils.documents import to_json
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError, setting
from esper.utils.terminal import output


@dataclass(frozen=True)
class EvaluateSettings(SceneSettings):
    """Compare policies on the same environment seeds."""

    num_envs: int = setting(128, "environments", low=6, high=65536)
    policies: str = setting(
        ",".join(USUAL), f"who is compared with the run's policy, with commas between: {', '.join(NAMED)}"
    )
    runs: str = setting("", "run directories of further learned policies, with commas between; their mean is reported")
    grow: str = setting("", "also evaluate growing this blueprint wherever there is room")
    policy: str = setting("", "also evaluate this policy of your own, py:module:name, a function from an engine to it")
    gradient: bool = setting(False, "also evaluate growing what the gradient of the validation loss is largest for")
    statistics: str = setting(
        "", "where bandits take up and keep what they learn: a file, or redis://HOST:PORT/DB#NAME (for a day)"
    )
    records: str = setting("", "also write every decision, with its reason and risk, as a line of JSON into this file")
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
    loaded, names = settings.loaded(), names_of(settings.policies)
    scene = build_scene(settings.rules(loaded), settings.num_envs, settings.backend, settings.device)
    bandits = {name: bandit_of(scene, name) for name in names if name in STRATEGIES}
    starts = recall_statistics(settings.statistics, scene, bandits) if settings.statistics else {}
    learned = further_runs(settings.runs, settings.checkpoint, scene, settings.greedy)
    policies = policies_of(scene, loaded, settings.greedy, names, starts)
    place = 0 if loaded is None else 1
    policies[place:place] = learned
    if settings.grow:
        try:
            policies.append(growing(scene, settings.grow))
        except ValueError as error:
            raise SettingsError(f"--grow: {error}") from None
    policies += [own_policy(scene.engine, "--policy", settings.policy)] if settings.policy else []
    policies += [gradient_of(scene)] if settings.gradient and "gradient" not in names else []
    records = open_records(settings.records)
    progress = make_progress("bar" if is_terminal(sys.stderr) else "off", "policy", sys.stderr)
    report, outcomes = compare(scene, policies, settings.seed, progress.note)
    progress.close()
    if settings.statistics:
        keep_statistics(settings.statistics, scene, bandits, outcomes)
    if records is not None:
        write_records(records, scene.engine.codec, outcomes)
    out.write(to_json(report) + "\n" if settings.json else table(report))
    return report


def further_runs(runs: str, which: str, scene: Scene, greedy: bool) -> list[Policy]:
    """The policies of further runs, named after their directories.

    Raises:
      SettingsError: a directory is named twice.
      CheckpointError: a run cannot be read.
    """
    folders = [folder.strip() for folder in runs.split(",")] if runs else []
    if len(set(folders)) < len(folders):
        raise SettingsError(f"--runs = {runs!r}: expected different directories with commas between")
    interface = scene.engine.interface
    loaded = [load_run_to_play(user_path(folder), which) for folder in folders]
    made = [load_policy(each, interface, greedy) for each in loaded]
    return [policy._replace(name=f"{LEARNED} {folder}") for policy, folder in zip(made, folders, strict=True)]


def open_records(path: str) -> TextIO | None:
    """A file for records, made before anything is played; None without a name.

    Raises:
      SettingsError: it cannot be written.
    """
    try:
        return user_path(path).open("w", encoding="utf-8") if path else None
    except OSError as error:
        raise SettingsError(f"--records {path}: {error.strerror}; expected a place for a file") from None


def write_records(file: TextIO, codec: Codec, outcomes: Sequence[Outcome]) -> None:
    """Write every decision as a line of JSON: policy, environment, epoch, and ``esper.nissa.records.record_of``.

    A static network decides nothing; it has no lines.
    """
    with file:
        for outcome in outcomes:
            length, envs = outcome.trace.action.shape if not outcome.policy.startswith(STATIC) else (0, 0)
            for env in range(envs):
                for t in range(length):
                    facts = {"policy": outcome.policy, "env": env, "epoch": t + 1}
                    file.write(to_json(facts | record_of(outcome.trace, codec, t, env)) + "\n")
