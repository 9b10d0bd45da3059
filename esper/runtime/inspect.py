"""The inspection command: one episode told decision by decision."""

from dataclasses import dataclass
from textwrap import wrap
from typing import Any, TextIO

from torch import Tensor

from esper.leyline.actions import Codec
from esper.leyline.codes import CHECK_TEXT, REFUSAL_TEXT, VERDICT_TEXT, Check, Refusal, Verdict
from esper.leyline.stages import Stage
from esper.nissa.records import record_of
from esper.nissa.trace import Trace
from esper.runtime.one_policy import OneSettings, one_policy
from esper.runtime.rollout import rollout
from esper.runtime.scene import Scene
from esper.urza.checkpoint import Checkpoint
from esper.utils.documents import to_json
from esper.utils.settings import setting
from esper.utils.terminal import output

TERMS = 4
"""Largest terms of a reward that the text names."""

COLUMNS = 110
"""Width of the text."""


@dataclass(frozen=True)
class InspectSettings(OneSettings):
    """Tell one episode decision by decision."""

    json: bool = setting(False, "print one JSON object instead of text")


def inspect(settings: InspectSettings, out: TextIO | None = None) -> dict[str, Any]:
    """Play an episode and tell it.

    Args:
      settings: everything.
      out: where the text or the JSON object goes; None = standard output.

    Returns:
      the story: what was played, and per decision what was seen, chosen and brought about.

    Raises:
      SettingsError, CheckpointError: the run cannot be read, or a name or number is not allowed.
    """
    out = output(out)
    loaded, name, scene, policy = one_policy(settings)
    outcome = rollout(scene.engine, policy, settings.seed, scene.mode, scene.params)[1]
    trace = outcome.trace
    tested = {"test_accuracy": outcome.test_accuracy, "test_loss": outcome.test_loss}
    story = _heading(settings, scene, loaded, name) | {
        "decisions": [decision(trace, scene.engine.codec, t, settings.env) for t in range(trace.length)],
        "end": situation(trace, scene.engine.codec, trace.length, settings.env)
        | {name: float(column[settings.env]) for name, column in tested.items()},
    }
    out.write(to_json(story) + "\n" if settings.json else tell(story))
    return story


def _heading(settings: InspectSettings, scene: Scene, loaded: Checkpoint | None, policy: str) -> dict[str, Any]:
    return {
        "task": scene.rules.task,
        "env": settings.env,
        "seed": settings.seed,
        "policy": policy,
        "run": settings.run or None,
        "round": None if loaded is None else loaded.table["done"],
        "reward": scene.rules.reward,
        "horizon": scene.engine.config.horizon,
        "slots": list(scene.engine.structure.slot_names),
    }


def situation(trace: Trace, codec: Codec, decision: int, env: int) -> dict[str, Any]:
    """What there is before a decision (after the last one, for ``decision`` = T); None before the first epoch."""
    num_slots, t = trace.stage.shape[2], decision - 1
    if t < 0:
        empty = {"stage": Stage.DORMANT.name, "blueprint": None, "alpha": 0.0, "effect": None, "effect_error": None}
        slots = [{"slot": slot, **empty} for slot in range(num_slots)]
        return {"val_accuracy": None, "val_loss": None, "slots": slots}
    return {
        "val_accuracy": _measured(trace.accuracy[t, env]),
        "val_loss": _measured(trace.loss[t, env]),
        "slots": [_slot(trace, codec, t, env, slot) for slot in range(num_slots)],
    }


def _measured(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)


def _slot(trace: Trace, codec: Codec, t: int, env: int, slot: int) -> dict[str, Any]:
    here = (t, env, slot)
    kind, effect = int(trace.blueprint[here]), float(trace.effect[here])
    known = effect == effect  # NaN where not measured
    return {
        "slot": slot,
        "stage": Stage(int(trace.stage[here])).name,
        "blueprint": codec.blueprint_names[kind] if kind >= 0 else None,
        "alpha": float(trace.alpha[here]),
        "effect": effect if known else None,
        "effect_error": float(trace.effect_error[here]) if known else None,
    }


def decision(trace: Trace, codec: Codec, t: int, env: int) -> dict[str, Any]:
    """A decision: what was seen, what was chosen, and what came of it."""
    here = (t, env)
    refusal, failed = Refusal(int(trace.refusal[here])), int(trace.failed[here])
    verdict = Verdict(int(trace.verdict[here]))
    return {
        "epoch": t + 1,
        "before": situation(trace, codec, t, env),
        "action": _named(codec, int(trace.action[here])),
        "record": record_of(trace, codec, t, env),
        "diagnostics": _diagnostics(trace, codec, t, env),
        "refused": None if refusal is Refusal.NONE else REFUSAL_TEXT[refusal],
        "failed_checks": [CHECK_TEXT[check] for check in Check if failed & check],
        "verdict": None if verdict is Verdict.CALM else VERDICT_TEXT[verdict],
        "rolled_back": bool(trace.rolled_back[here]),
        "val_accuracy": _measured(trace.accuracy[here]),
        "val_loss": _measured(trace.loss[here]),
        "reward": float(trace.reward[here]),
        "terms": dict(zip(trace.term_names, trace.terms[here].tolist(), strict=True)),
    }


def _named(codec: Codec, index: int) -> str:
    return codec.describe(index) if 0 <= index < codec.size else f"number {index}, which is no action"


def _diagnostics(trace: Trace, codec: Codec, t: int, env: int) -> dict[str, Any] | None:
    if trace.diagnostics is None:
        return None
    taken, diagnostics = int(trace.action[t, env]), trace.diagnostics
    ranked = zip(diagnostics.likeliest[t, env].tolist(), diagnostics.likelihood[t, env].tolist(), strict=True)
    return {
        "value": float(diagnostics.value[t, env]),
        "probability": float(diagnostics.probability[t, env]),
        "entropy": float(diagnostics.entropy[t, env]),
        "alternatives": [
            {"action": codec.describe(action), "probability": chance}
            for action, chance in ranked
            if action != taken and chance > 0
        ],
    }


def tell(story: dict[str, Any]) -> str:
    """The story as text of at most about ``COLUMNS`` columns."""
    lines = [
        f"{story['task']}, environment {story['env']} of seed {story['seed']}, {story['policy']}, "
        f"{story['horizon']} decisions, reward {story['reward']}",
    ]
    if story["policy"] == "learned":
        lines.append(f"policy of {story['run']} after round {story['round']}")
    if story["slots"]:
        words = f"slots: {', '.join(f'{slot} {name}' for slot, name in enumerate(story['slots']))}"
        lines += wrap(words, COLUMNS, subsequent_indent="  ")
    for row in story["decisions"]:
        lines += ["", *_tell_before(f"decision {row['epoch']}", row["before"]), *_tell_decision(row)]
    total = sum(row["reward"] for row in story["decisions"])
    lines += ["", *_tell_before("end", story["end"]), f"  return   {total:+.2f}"]
    return "\n".join(lines) + "\n"


def _tell_before(title: str, row: dict[str, Any]) -> list[str]:
    seen = (
        [] if row["val_accuracy"] is None else [f"validation {row['val_accuracy']:.1f} %   loss {row['val_loss']:.3f}"]
    )
    if "test_accuracy" in row:
        seen.insert(0, f"test {row['test_accuracy']:.1f} %   loss {row['test_loss']:.3f}")
    dormant = [str(slot["slot"]) for slot in row["slots"] if slot["stage"] == Stage.DORMANT.name]
    empty = f"dormant: slot {', '.join(dormant)}" if dormant else ""
    lines = [f"{title:<14}{'   '.join(word for word in (*seen, empty) if word)}".rstrip()]
    for slot in row["slots"]:
        if slot["stage"] == Stage.DORMANT.name:
            continue
        effect = ""
        if slot["effect"] is not None:
            name = "prospect" if slot["stage"] == Stage.TRAINING.name else "contribution"
            effect = f"{name} {slot['effect']:+.2f} ± {slot['effect_error']:.2f} pp"
        grown = f"{slot['blueprint']:<16} alpha {slot['alpha']:.2f}   {effect}" if slot["blueprint"] else ""
        lines.append(f"  slot {slot['slot']}   {slot['stage']:<13} {grown}".rstrip())
    return lines


def _tell_decision(row: dict[str, Any]) -> list[str]:
    diagnostics, chance, lines = row["diagnostics"], "", []
    if diagnostics is not None:
        chance = f"   (probability {diagnostics['probability']:.2f}, value {diagnostics['value']:+.2f})"
    lines.append(f"  chose    {row['action']}{chance}")
    if diagnostics is not None and diagnostics["alternatives"]:
        others = [f"{other['action']} {other['probability']:.2f}" for other in diagnostics["alternatives"]]
        indent = " " * 11
        lines += wrap(f"rather than {', '.join(others)}", COLUMNS, initial_indent=indent, subsequent_indent=indent)
    lines += _tell_record(row["record"])
    if row["refused"]:
        lines.append(f"  refused  {'; '.join([row['refused'], *row['failed_checks']])}")
    if row["verdict"]:
        lines.append(f"  governor {row['verdict']}")
    terms = sorted(row["terms"].items(), key=lambda term: -abs(term[1]))
    named = [f"{name} {value:+.2f}" for name, value in terms if abs(value) >= 0.005][:TERMS]
    lines.append(f"  reward   {row['reward']:+.2f}" + (f" = {', '.join(named)}" if named else ""))
    if len(named) == TERMS and sum(abs(value) >= 0.005 for value in row["terms"].values()) > TERMS:
        lines[-1] += ", …"
    return lines


def _tell_record(record: dict[str, Any]) -> list[str]:
    """Why, how sure, and at what risk; the best alternatives where there are scores."""
    risk = f"risk {record['risk']['level']} {record['risk']['colour']}"
    if record["reason"] is None:
        return [f"  because  no reason is given   ({risk})"]
    words = [record["mode"] or "", f"confidence {record['confidence']:.2f}", risk]
    lines = [f"  because  {record['reason']}   ({', '.join(word for word in words if word)})"]
    if record["score"] is not None:
        others = [f"{other['action']} {other['score']:.3f}" for other in record["alternatives"]]
        scored = f"score {record['score']:.3f}" + (f"; others {', '.join(others)}" if others else "")
        indent = " " * 11
        lines += wrap(scored, COLUMNS, initial_indent=indent, subsequent_indent=indent)
    return lines
