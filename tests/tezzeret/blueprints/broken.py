"""Valid documents broken on purpose, by named classes: what is done to one, and what its refusal has to name."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple


class Broken(NamedTuple):
    """A document that is to be refused: in which stage, about which node (None: not told), with these words."""

    data: bytes
    stage: str
    node: str | None
    words: str


Table = dict[str, Any]
Break = Callable[[Table, random.Random], Broken]


def case_of(table: Table) -> Table:
    return table["cases"][0]


def nodes_of(table: Table) -> list[Table]:
    return case_of(table)["train"]["nodes"]


def raw(table: Table, stage: str, node: str | None, words: str) -> Broken:
    return Broken(json.dumps(table).encode(), stage, node, words)


def at_node(change: Callable[[Table, Table, random.Random], str], stage: str = "parse") -> Break:
    """Something is done to a node of training; the change says which words name it."""

    def broken(table: Table, draw: random.Random) -> Broken:
        node = draw.choice(nodes_of(table))
        return raw(table, stage, node["name"], change(table, node, draw))

    return broken


def at_row(change: Callable[[Table, random.Random], str], stage: str = "parse") -> Break:
    """Something is done to a parameter."""

    def broken(table: Table, draw: random.Random) -> Broken:
        row = draw.choice(case_of(table)["parameters"])
        return raw(table, stage, row["name"], change(row, draw))

    return broken


def with_text(old: str, new: str, words: str, node: str | None = None) -> Break:
    """The first such text in the file is another."""

    def broken(table: Table, draw: random.Random) -> Broken:
        text = json.dumps(table)
        assert old in text
        return Broken(text.replace(old, new, 1).encode(), "parse", node, words)

    return broken


def unknown_field(table: Table, node: Table, draw: random.Random) -> str:
    node[draw.choice(("colour", "$ref", "__class__", "inputs_"))] = "http://example.org/x.json"
    return "unknown field"


def missing_field(table: Table, node: Table, draw: random.Random) -> str:
    del node["inputs"]
    return "no field 'inputs'"


def unknown_operation(table: Table, node: Table, draw: random.Random) -> str:
    node["op"] = draw.choice(("os.system", "conv3d", "input", "parameter", "Linear", "__import__"))
    return f"op {node['op']!r}"


def too_many_inputs(table: Table, node: Table, draw: random.Random) -> str:
    node["inputs"] = ["x"] * 65
    return "inputs: a list of 65"


def no_inputs(table: Table, node: Table, draw: random.Random) -> str:
    node["inputs"] = []
    return "inputs: a list of 0"


def dangling_name(table: Table, node: Table, draw: random.Random) -> str:
    node["inputs"][0] = "nobody"
    return "'nobody': no such name"


def itself(table: Table, node: Table, draw: random.Random) -> str:
    node["inputs"][-1] = node["name"]
    return "itself among its inputs"


def cycle(table: Table, draw: random.Random) -> Broken:
    """The first node reads the last, which depends on it or could."""
    first, last = nodes_of(table)[0], {"name": "end", "op": "tanh", "inputs": [nodes_of(table)[0]["name"]]}
    nodes_of(table).append(last)
    first["inputs"][0] = "end"
    return raw(table, "parse", first["name"], "a node that comes later")


def name_twice(table: Table, draw: random.Random) -> Broken:
    row = draw.choice(case_of(table)["parameters"])
    nodes_of(table).insert(0, {"name": row["name"], "op": "tanh", "inputs": ["x"]})
    return raw(table, "parse", row["name"], "stands twice")


def parameter_twice(table: Table, draw: random.Random) -> Broken:
    row = draw.choice(case_of(table)["parameters"])
    case_of(table)["parameters"].append(copy.deepcopy(row))
    return raw(table, "parse", row["name"], "stands twice")


def odd_name(table: Table, node: Table, draw: random.Random) -> str:
    odd = ("file:///etc/passwd", "../x", "a b", "k\u0435rnel", "x.__class__", "", "n" * 81, "https://a.b/c", "ﬁ")
    node["inputs"][0] = draw.choice(odd)
    return "expected a name"


def odd_shape(row: Table, draw: random.Random) -> str:
    row["shape"][0] = draw.choice((True, 2.5, None, [2]))
    return "expected a whole number"


def negative_shape(row: Table, draw: random.Random) -> str:
    row["shape"][0] = draw.choice((0, -3))
    return "expected sizes from 1"


def odd_expression(row: Table, draw: random.Random) -> str:
    texts = (
        "axes.__class__",
        "axes ** 9 ** 9",
        "__import__('os')",
        "axes[0]",
        "(axes",
        "axes +",
        "min(axes)",
        "1 if 1",
    )
    row["shape"][0] = draw.choice((*texts, "(" * 40 + "axes" + ")" * 40, "axes + " * 200 + "1", "9" * 33, "eval(axes)"))
    return "shape "


def unknown_size(row: Table, draw: random.Random) -> str:
    row["shape"][0] = draw.choice(("depth * 2", "colour", "batch"))
    return "unknown size"


def divided_by_zero(row: Table, draw: random.Random) -> str:
    row["shape"][0] = draw.choice(("axes // (axes - axes)", "7 % (axes * 0)"))
    return "a division by 0"


def huge_size(row: Table, draw: random.Random) -> str:
    row["shape"][0] = " * ".join(["99999999", "axes"] * 9)
    return "bits; expected at most 48"


def too_small(row: Table, draw: random.Random) -> str:
    row["shape"][0] = "axes - 99"
    return "an axis of"


def no_scale(row: Table, draw: random.Random) -> str:
    row.pop("values", None)
    row |= {"init": "uniform", "scale": {draw.choice(("over", "over_root")): "axes - axes"}}
    return "= axes - axes; expected at least 1"


def huge_named_size(table: Table, draw: random.Random) -> Broken:
    """Sizes that square each other, of which the last has too many bits; nobody reads it."""
    squares = [{"name": f"square_{n}", "value": f"square_{n - 1} * square_{n - 1}" if n else "99"} for n in range(20)]
    case_of(table)["sizes"] = case_of(table).get("sizes", []) + squares
    return raw(table, "graph", "case", "bits; expected at most 48")


def odd_init(row: Table, draw: random.Random) -> str:
    row["init"] = draw.choice(("orthogonal", "zeros", "file"))
    return f"init {row['init']!r}"


def odd_scale(row: Table, draw: random.Random) -> str:
    row["init"] = "uniform"
    row.pop("values", None)
    row["scale"] = draw.choice(("0.1", {"root": 4}, {"over": 1, "over_root": 1}, None, True))
    return "scale"


def wrong_shape(table: Table, draw: random.Random) -> Broken:
    """A weight has one more column: the node that reads it is told."""
    readers = {node["inputs"][1]: node["name"] for node in nodes_of(table) if node["op"] in ("linear", "convolve")}
    if not readers:
        case_of(table)["parameters"].append({"name": "odd_weight", "shape": [2, 7919], "init": "normal", "scale": 1})
        nodes_of(table).insert(0, {"name": "odd", "op": "linear", "inputs": ["x", "odd_weight"]})
        return raw(table, "graph", "odd", "shape [2, 7919]")
    row = draw.choice([row for row in case_of(table)["parameters"] if row["name"] in readers])
    row["shape"][1] = f"{row['shape'][1]} + 1"
    row |= {"init": "normal", "scale": 1}
    row.pop("values", None)
    return raw(table, "graph", readers[row["name"]], "shape [")


def wrong_output(table: Table, draw: random.Random) -> Broken:
    train = case_of(table)["train"]
    train["nodes"].append({"name": "odd", "op": "constant", "inputs": [], "values": [1, 2], "shape": [2]})
    train["output"] = "odd"
    return raw(table, "graph", "odd", "the result's shape [2]")


def lost_output(table: Table, draw: random.Random) -> Broken:
    case_of(table)["train"]["output"] = "nobody"
    return raw(table, "parse", "train", "output 'nobody'")


def wrong_type(table: Table, draw: random.Random) -> Broken:
    """Features where tokens are expected, and tokens where features are."""
    tokens = case_of(table)["source"] == ["tokens"]
    rows = case_of(table)["parameters"][0]["name"]
    odd = (
        {"name": "odd", "op": "tanh", "inputs": ["x"]}
        if tokens
        else {"name": "odd", "op": "embed", "inputs": ["x", rows]}
    )
    nodes_of(table).insert(0, odd)
    return raw(table, "graph", "odd", "tokens")


def too_many_parameters(table: Table, draw: random.Random) -> Broken:
    row = {"name": "vast", "shape": ["axes * 100000", 1000], "init": "normal", "scale": 1}
    case_of(table)["parameters"].append(row)
    return raw(table, "graph", "", "parameters; expected at most 10000000")


def too_many_numbers(table: Table, draw: random.Random) -> Broken:
    row = {"name": "left", "shape": [10000, 2], "init": "normal", "scale": 1}
    case_of(table)["parameters"].append(row)
    other = {"name": "right", "op": "reshape", "inputs": ["left"], "shape": [2, 10000]}
    nodes_of(table)[:0] = [
        other,
        {"name": "vast", "op": "matmul", "inputs": ["left", "right"], "groups": 1, "inner": 2},
    ]
    return raw(table, "graph", "vast", "numbers; expected at most")


def odd_format(table: Table, draw: random.Random) -> Broken:
    table["format"] = draw.choice((2, 0, "1", None, True, 1.5))
    return raw(table, "parse", "", "format")


def odd_kind(table: Table, draw: random.Random) -> Broken:
    case_of(table)["source"] = [draw.choice(("sound", "logits", 3, "Conv"))]
    return raw(table, "parse", "case", "source")


def false_condition(table: Table, draw: random.Random) -> Broken:
    case_of(table)["where"] = ["numbers < 0"]
    return raw(table, "graph", "", "no case for")


def odd_inference(table: Table, draw: random.Random) -> Broken:
    case_of(table)["infer"] = copy.deepcopy(case_of(table)["train"])
    case_of(table)["infer"].pop("buffers", None)
    op = draw.choice(("dropout", "batch_mean"))
    node = {"name": "odd", "op": op, "inputs": ["x"]} | ({"share": 0.5} if op == "dropout" else {})
    case_of(table)["infer"]["nodes"].insert(0, node)
    return raw(table, "parse", "odd", "in inference; expected it in training alone")


def odd_share(table: Table, draw: random.Random) -> Broken:
    share = draw.choice((1, -0.1, 1.5, "half"))
    nodes_of(table).insert(0, {"name": "odd", "op": "dropout", "inputs": ["x"], "share": share})
    return raw(table, "parse", "odd", "share")


def odd_buffer(table: Table, draw: random.Random) -> Broken:
    case_of(table)["train"].setdefault("buffers", {})["nobody"] = nodes_of(table)[0]["name"]
    return raw(table, "parse", "train", "a new value of 'nobody'")


def taken_beyond(table: Table, draw: random.Random) -> Broken:
    odd = {"name": "odd", "op": "take", "inputs": ["x"], "index": [draw.choice((900, 5000))], "shape": [1]}
    nodes_of(table).insert(0, odd)
    return raw(table, "graph", "odd", "numbers; expected -1 to")


def too_deep(table: Table, draw: random.Random) -> Broken:
    deep = "[" * draw.choice((40, 5000)) + "]" * 40
    text = json.dumps(table).replace('"bypass"', f'"where": {deep}, "bypass"')
    return Broken(text.encode(), "parse", "", "nested")


def too_long(table: Table, draw: random.Random) -> Broken:
    return Broken(json.dumps(table).encode() + b" " * 4_000_000, "parse", "", "bytes; expected at most")


def cut_short(table: Table, draw: random.Random) -> Broken:
    data = json.dumps(table).encode()
    return Broken(data[: draw.randint(1, len(data) - 1)], "parse", "", "expected JSON")


def no_text(table: Table, draw: random.Random) -> Broken:
    return Broken(json.dumps(table).encode() + b"\xff\xfe", "parse", "", "no UTF-8")


def no_object(table: Table, draw: random.Random) -> Broken:
    return Broken(draw.choice((b"[]", b"1", b'"name"', b"null")), "parse", "", "expected an object")


BREAKS: dict[str, Break] = {
    "unknown field": at_node(unknown_field),
    "missing field": at_node(missing_field),
    "unknown operation": at_node(unknown_operation),
    "too many inputs": at_node(too_many_inputs),
    "no inputs": at_node(no_inputs),
    "dangling name": at_node(dangling_name),
    "itself": at_node(itself),
    "cycle": cycle,
    "name twice": name_twice,
    "parameter twice": parameter_twice,
    "file, URL, attribute or letter": at_node(odd_name),
    "key twice": with_text('"bypass"', '"format": 1, "bypass"', "stands twice in one object"),
    "NaN": with_text('"format": 1', '"identity_bound": NaN, "format": 1', "NaN; expected a finite number"),
    "infinity": with_text('"format": 1', '"identity_bound": 1e999, "format": 1', "1e999; expected a finite number"),
    "minus infinity": with_text(
        '"format": 1', '"identity_bound": -Infinity, "format": 1', "-Infinity; expected a finite"
    ),
    "digits": with_text('"format": 1', f'"identity_bound": {"9" * 5000}, "format": 1', "a number of 5000 digits"),
    "odd axis": at_row(odd_shape),
    "negative axis": at_row(negative_shape),
    "odd expression": at_row(odd_expression),
    "unknown size": at_row(unknown_size),
    "division by zero": at_row(divided_by_zero, "graph"),
    "huge size": at_row(huge_size, "graph"),
    "huge named size": huge_named_size,
    "no scale": at_row(no_scale, "graph"),
    "axis below one": at_row(too_small, "graph"),
    "odd initialiser": at_row(odd_init),
    "odd scale": at_row(odd_scale),
    "wrong shape": wrong_shape,
    "wrong output": wrong_output,
    "lost output": lost_output,
    "wrong type": wrong_type,
    "too many parameters": too_many_parameters,
    "too many numbers": too_many_numbers,
    "other format": odd_format,
    "unknown kind": odd_kind,
    "false condition": false_condition,
    "training alone": odd_inference,
    "odd share": odd_share,
    "unknown buffer": odd_buffer,
    "beyond the end": taken_beyond,
    "nesting": too_deep,
    "length": too_long,
    "cut short": cut_short,
    "no text": no_text,
    "no object": no_object,
}
"""By what is wrong."""
