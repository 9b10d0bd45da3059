"""Imports go one way. One table, no exceptions."""

import ast
from pathlib import Path

import esper

ROOT = Path(esper.__file__).parent
LAYERS = {
    "utils": 0,
    "kernels": 1,
    "leyline": 1,
    "nissa": 2,
    "tamiyo": 2,
    "urza": 2,
    "kasmina": 3,
    "tezzeret": 4,
    "tolaria": 5,
    "engine": 6,
    "simic": 7,
    "runtime": 8,
    "bench": 9,
    "__init__": 10,
    "__main__": 10,
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("esper"):
            parts = node.module.split(".")
            yield from ([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("esper."))


def test_imports_go_downwards():
    checked = 0
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for target in imports_of(path):
            assert target == part or LAYERS[target] < LAYERS[part], f"{path.relative_to(ROOT)} imports esper.{target}"
            checked += 1
    assert checked > 50


def test_compile_is_called_in_one_file():
    users = {
        path.name
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.compile"
    }
    assert users == {"compiled.py"}


def test_files_and_functions_stay_small():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                assert node.end_lineno - node.lineno - docstring.count("\n") <= 50, f"{path}: {node.name}"
                arguments = node.args.args + node.args.kwonlyargs
                assert len([a for a in arguments if a.arg != "self"]) <= 7, f"{path}: {node.name}"


STOPS = ("detach", "requires_grad_", "no_grad", "set_", "copy_")
"""What would stop a derivative from outside, or write into an argument."""


def test_the_definition_stops_no_gradient_and_writes_nothing_in_place():
    """The oracle is the second opinion and may; the native form computes no derivatives from outside."""
    package = ROOT / "tezzeret"
    definition = [path for path in package.glob("*.py") if not path.name.startswith("oracle")]
    parts = ("optimizers", "layers.py", "objectives.py", "gate.py", "cnn.py", "transformer.py", "arena.py")
    modules = [path for part in parts for path in (ROOT / "kasmina").glob(f"{part}*") if path.suffix == ".py"]
    modules += [*(ROOT / "kasmina" / "optimizers").glob("*.py"), *(ROOT / "kasmina").glob("*_blueprints.py")]
    for path in (*definition, *modules):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr in STOPS), f"{path.name}:{node.lineno}"
    assert len(definition) > 8 and len(modules) > 10
