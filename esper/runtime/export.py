"""The export command: the network that grew in one environment, in files that need nothing of Esper."""

from dataclasses import dataclass
from typing import Any, TextIO

from esper.runtime.one_policy import OneSettings, one_policy
from esper.runtime.rollout import rollout
from esper.runtime.written import KINDS, expect_place, tell_file, write_network
from esper.utils.documents import to_json
from esper.utils.settings import setting
from esper.utils.terminal import output


@dataclass(frozen=True)
class ExportSettings(OneSettings):
    """Write the network that grew in one environment, as plain PyTorch or ONNX."""

    to: str = setting("", f"file to write: {KINDS}")
    json: bool = setting(False, "print the card instead of text")


def export(settings: ExportSettings, out: TextIO | None = None) -> dict[str, Any]:
    """Play an episode, and write the network of one environment; its card lies beside it.

    Args:
      settings: everything.
      out: where the text or the card goes; None = standard output.

    Returns:
      the card.

    Raises:
      SettingsError, CheckpointError: the run cannot be read, a name or number is not allowed, or the file cannot be
        written.
      ConfigError: what grew cannot be written down.
    """
    path = expect_place(settings.to)
    loaded, name, scene, policy = one_policy(settings)
    state, outcome = rollout(scene.engine, policy, settings.seed, scene.mode, scene.params)
    played = {"task": scene.rules.task, "env": settings.env, "seed": settings.seed, "policy": name}
    played |= {"run": settings.run or None, "round": None if loaded is None else loaded.table["done"]}
    played |= {"test_accuracy": float(outcome.test_accuracy[settings.env])}
    card = write_network(scene.engine, state, settings.env, path, played)
    output(out).write(to_json(card) + "\n" if settings.json else tell(card))
    return card


def tell(card: dict[str, Any]) -> str:
    """The card as text."""
    lines = [
        f"{card['task']}, environment {card['env']} of seed {card['seed']}, {card['policy']}: {card['host']['name']}, "
        f"{card['host']['parameters']} parameters; grown {card['parameters']}"
    ]
    for seed in card["seeds"]:
        said = f"  slot {seed['slot']} {seed['place']}: {seed['blueprint']}, {seed['parameters']} parameters, "
        said += f"germinated at epoch {seed['germinated']}, {seed['stage']}, alpha {seed['alpha']:.2f}"
        if seed["contribution"] is not None:
            said += f", contribution {seed['contribution']:+.2f} ± {seed['contribution_error']:.2f} pp"
        lines.append(said + ("" if seed["in_network"] else " (not in the network)"))
    return "\n".join([*lines, *tell_file(card)]) + "\n"
