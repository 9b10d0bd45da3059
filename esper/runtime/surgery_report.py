"""What the surgery command says: of places, of operations, and of their history."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, NamedTuple

from esper.runtime.written import tell_file
from esper.tezzeret.surgery import Report
from esper.tezzeret.surgery.spelling import spelled

STAYS = 1e-4
"""Share of the largest output by which outputs may move and count as kept."""

SAID = {"samples": "the host's own", "validation": "validation"}
"""Operations are tried on some samples of the validation part, and on the host without its seeds."""


class Measured(NamedTuple):
    """Of a whole part of the data, in inference: loss, and accuracy in percentage points."""

    loss: float
    accuracy: float


def listed(report: Report) -> dict[str, Any]:
    """What became of an operation, JSON-able; of one that was not done, the rest is None."""
    is_done = report.done
    return {
        "op": spelled(report.op),
        "kind": report.name,
        "done": is_done,
        "stage": report.stage,
        "reason": report.reason,
        "parameters": list(report.params) if is_done else None,
        "moved": report.moved if is_done else None,
        "kept": report.moved is not None and report.moved <= STAYS if is_done else None,
        "samples": [effect._asdict() for effect in (report.before, report.after) if effect] if is_done else None,
        "milliseconds": 1000 * report.seconds,
    }


def measured_row(op: str, report: Report, before: Measured, after: Measured) -> dict[str, Any]:
    """The same, with the validation part before and behind."""
    return listed(report) | {"op": op, "validation": [before._asdict(), after._asdict()]}


def _moved(row: Mapping[str, Any]) -> str:
    if row["moved"] is None:
        return ""
    return "outputs kept" if row["kept"] else f"outputs move by {row['moved']:.2g} of the largest"


def _change(row: Mapping[str, Any], what: str) -> str:
    (old, new), sizes = row[what], row["parameters"]
    said = [
        f"{sizes[0]} to {sizes[1]} parameters",
        _moved(row),
        f"{SAID[what]} loss {old['loss']:.4f} to {new['loss']:.4f}",
        f"accuracy {old['accuracy']:.1f} to {new['accuracy']:.1f} %",
    ]
    return ", ".join(part for part in said if part)


def _about(card: Mapping[str, Any]) -> str:
    origin = card.get("network") or f"environment {card['env']} of seed {card['seed']}, {card['policy']}"
    layers = ", ".join(f"{name} {width}" for name, width in card["layers"].items())
    return f"{card['task']}, {origin}; layers and their units: {layers}"


def _alike(row: Mapping[str, Any]) -> tuple[str, str]:
    """What stands on one line: of operations between two layers, of which there are many, the first of each kind."""
    return row["kind"], "" if row["kind"] in ("add_skip", "rewire") else row["reason"]


def tell_list(card: Mapping[str, Any]) -> str:
    """What can be done, a line each; what cannot, by reason."""
    can, lines = [row for row in card["places"] if row["done"]], [_about(card)]
    width = max((len(row["op"]) for row in can), default=0)
    lines += [f"  {row['op']:{width}}  {_change(row, 'samples')}" for row in can]
    cannot = sorted((row for row in card["places"] if not row["done"]), key=_alike)
    lines += ["refused:"] if cannot else []
    for _, rows in groupby(cannot, key=_alike):
        found = list(rows)
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        lines.append(f"  {found[0]['op']}{more}: {found[0]['reason']}")
    return "\n".join(lines) + "\n"


def tell(card: Mapping[str, Any]) -> str:
    """What was done, and what all of it came to."""
    lines = [_about(card)]
    for row in card["operations"]:
        said = _change(row, "validation") if row["done"] else f"refused ({row['stage']}): {row['reason']}"
        lines.append(f"  {row['op']}: {said}")
    for name, record in card["history"].items():
        said = f"{name}: {record['done']} of {record['asked']} done, {record['milliseconds']:.0f} ms each"
        if record["loss"] is not None:
            said += f", loss {record['loss']:+.4f}, accuracy {record['accuracy']:+.1f} points on the samples"
        lines.append(said)
    return "\n".join([*lines, *(tell_file(card) if "files" in card else [])]) + "\n"
