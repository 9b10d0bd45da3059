"""The JSON Schema of documents (draft 2020-12), made from the tables that reading goes by.

``schema.json`` beside this file is what it gives. The schema says which fields there are and of what types; what a
reader checks beyond it (names, order, expressions, shapes, costs) no schema can say.
"""

from pathlib import Path
from typing import Any

from esper.tezzeret.blueprints.document import FORMAT, INITS, RANKS, SOURCES
from esper.tezzeret.blueprints.operations import OPERATIONS, Attribute, Operation
from esper.tezzeret.blueprints.refusals import LIMITS

FILE = Path(__file__).parent / "schema.json"

NAME = "^[A-Za-z0-9][A-Za-z0-9_]*([.][A-Za-z0-9][A-Za-z0-9_]*)*$"
LOWER = "^[a-z][a-z0-9]*(_[a-z0-9]+)*$"
SIZE = {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 10 * LIMITS.text}]}
SHAPE = {"type": "array", "items": {"$ref": "#/$defs/size"}, "maxItems": LIMITS.rank}
REAL: dict[str, Any] = {
    "anyOf": [
        {"type": "number"},
        *(
            {"type": "object", "properties": {name: {"$ref": "#/$defs/size"}}, "required": [name]}
            for name in ("over_root", "over")
        ),
    ]
}
KINDS: dict[str, dict[str, Any]] = {
    "size": {"$ref": "#/$defs/size"},
    "shape": {"$ref": "#/$defs/shape"},
    "real": {"$ref": "#/$defs/real"},
    "share": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "flag": {"type": "boolean"},
    "index": {"type": "array", "items": {"type": "integer", "minimum": -1}},
    "numbers": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"const": "-inf"}]}},
}


def schema() -> dict[str, Any]:
    """The schema as JSON's values."""
    for entry in REAL["anyOf"][1:]:
        entry["additionalProperties"] = False
    names = {"type": "string", "pattern": NAME, "maxLength": LIMITS.text}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Esper blueprint document",
        **_object(
            {
                "format": {"const": FORMAT},
                "name": {"type": "string", "pattern": LOWER, "maxLength": LIMITS.text},
                "description": {"type": "string", "maxLength": 100 * LIMITS.text},
                "bypass": {"type": "boolean"},
                "identity_bound": {"type": "number", "minimum": 0},
                "cases": {"type": "array", "items": {"$ref": "#/$defs/case"}, "minItems": 1, "maxItems": 16},
            },
            ("format", "name", "bypass", "cases"),
        ),
        "$defs": {
            "name": names,
            "size": SIZE,
            "shape": SHAPE,
            "real": REAL,
            "case": _case(),
            "parameter": _row(INITS),
            "buffer": _row(("constant",)),
            "form": _form(False),
            "train": _form(True),
            "node": _any_node(),
        },
    }


def _object(properties: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(of: str, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/$defs/{of}"}, "minItems": least}


def _kinds(known: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "array", "items": {"enum": list(known)}, "minItems": 1, "uniqueItems": True}


def _case() -> dict[str, Any]:
    named_size = _object(
        {"name": {"type": "string", "pattern": LOWER}, "value": {"$ref": "#/$defs/size"}}, ("name", "value")
    )
    return _object(
        {
            "source": _kinds(SOURCES),
            "target": _kinds(tuple(RANKS)),
            "where": {"type": "array", "items": {"type": "string", "maxLength": 10 * LIMITS.text}},
            "sizes": {"type": "array", "items": named_size},
            "parameters": _list("parameter", 1),
            "buffers": _list("buffer"),
            "train": {"$ref": "#/$defs/train"},
            "infer": {"$ref": "#/$defs/form"},
        },
        ("source", "parameters", "train"),
    )


def _row(inits: tuple[str, ...]) -> dict[str, Any]:
    table = {
        "name": {"$ref": "#/$defs/name"},
        "shape": {"$ref": "#/$defs/shape"},
        "init": {"enum": list(inits)},
        "scale": {"$ref": "#/$defs/real"},
        "values": {"type": "array", "items": {"type": "number"}},
    }
    given = {"required": ["values"], "properties": {"init": {"enum": ["given", "shuffled"]}, "scale": False}}
    drawn = {
        "required": ["scale"],
        "properties": {
            "init": {"enum": [init for init in inits if init not in ("given", "shuffled")]},
            "values": False,
        },
    }
    return {**_object(table, ("name", "shape", "init")), "oneOf": [given, drawn]}


def _form(is_training: bool) -> dict[str, Any]:
    table: dict[str, Any] = {"nodes": {**_list("node"), "maxItems": LIMITS.nodes}, "output": {"$ref": "#/$defs/name"}}
    if is_training:
        table["buffers"] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/name"}}
    return _object(table, ("nodes", "output"))


def _any_node() -> dict[str, Any]:
    """A node; its operation decides what else it has, which takes less time to judge than a choice among all."""
    rules = [
        {"if": {"properties": {"op": {"const": op}}}, "then": _node(op, operation)}
        for op, operation in OPERATIONS.items()
    ]
    return {"type": "object", "required": ["op"], "properties": {"op": {"enum": list(OPERATIONS)}}, "allOf": rules}


def _node(op: str, operation: Operation) -> dict[str, Any]:
    least, most = operation.inputs[0], operation.inputs[-1]
    table = {
        "name": {"$ref": "#/$defs/name"},
        "op": {"const": op},
        "inputs": {**_list("name", least), "maxItems": most},
        **{name: _attribute(attribute) for name, attribute in operation.attributes.items()},
    }
    required = [name for name, attribute in operation.attributes.items() if attribute.required]
    return _object(table, ("name", "op", "inputs", *required))


def _attribute(attribute: Attribute) -> dict[str, Any]:
    return KINDS[attribute.kind]
