"""What the package's source must be: imports that go one way, one meaning per class name, small functions.

Imports under ``TYPE_CHECKING`` count like any other.
"""

import ast
import re
import warnings
from collections import defaultdict
from functools import cache
from pathlib import Path

import esper

ROOT = Path(esper.__file__).parent
REPOSITORY = ROOT.parent
LAYERS = {
    "utils": 0,
    "version": 0,
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
    "docs": 11,
    "__main__": 12,
}


@cache
def tree_of(path):
    return ast.parse(path.read_text())


def module_of(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in ROOT.rglob("*.py")}


def imports_of(path):
    """The modules of the package that a file names in an import, wherever that stands."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in MODULES else node.module for name in named if node.module in MODULES}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def part_of(module):
    return [*module.split("."), "__init__"][1]


def test_imports_go_downwards():
    checked = 0
    for module, path in MODULES.items():
        part = part_of(module)
        for target in map(part_of, imports_of(path)):
            assert target == part or LAYERS[target] < LAYERS[part], f"{module} imports esper.{target}"
            checked += 1
    assert checked > 50


def test_imports_have_no_circle():
    open_, done = [], set()

    def visit(module):
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        if module not in done:
            open_.append(module)
            for target in imports_of(MODULES[module]):
                visit(target)
            done.add(open_.pop())

    for module in MODULES:
        visit(module)


TWICE = {"Plan", "SlotRows"} | {"Op", "Seeds"}
"""Each backend's own form of one thing: a step's dispatch and a slot's part in it; what an instruction of a native
program does, and the seeds that such a program is handed.
"""


def test_a_class_name_has_one_meaning():
    owners = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                owners[node.name].append(module)
    assert {name: found for name, found in owners.items() if len(found) > 1 and name not in TWICE} == {}


FOREIGN = re.compile(
    r"SEMANTICS|ARCHITECTURE|REQUIREMENTS|SEAM\b|PROTOTYPES?/|\bS[1-9]H?\b|December 2025 (system|version)|\b[Ii]ssue \d"
    r"|\bdesign/|[Pp]redecessor|source systems?\b"
)
"""Documents that are not in the repository."""


def test_texts_name_no_document_that_is_not_here():
    texts = [*ROOT.rglob("*.py"), *(REPOSITORY / "kernels").glob("*.*"), REPOSITORY / "README.md"]
    found = [
        f"{path.relative_to(REPOSITORY)}: {match.group()}"
        for path in texts
        for match in FOREIGN.finditer(path.read_text())
    ]
    assert not found and len(texts) > 150


PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
"""Underscored names that are public: those of named tuples."""


def private_names(path):
    """Names of other packages: in imports, and as attributes that the file neither defines nor sets."""
    tree = tree_of(path)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from {node.attr} - own
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("esper"):
            yield from (name for alias in node.names for name in (*node.module.split("."), alias.name))
        elif isinstance(node, ast.Import):
            yield from (name for alias in node.names for name in alias.name.split("."))


def test_private_names_of_torch_are_in_two_modules():
    found = {
        f"{module}: {name}"
        for module, path in MODULES.items()
        if module not in ("esper.utils.torch_private", "esper.utils.inductor_private")
        for name in private_names(path)
        if name.startswith("_") and not name.endswith("__") and name not in PUBLIC
    }
    assert found == set()


def test_public_names_are_sorted_importable_and_documented():
    readme = (REPOSITORY / "README.md").read_text()
    assert list(esper.__all__) == sorted(esper.__all__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in esper.__all__:
            assert getattr(esper, name).__doc__, name
            assert re.search(rf"\b{name}\b", readme), f"{name} is not in the README"


def test_compile_is_called_in_one_file():
    users = {
        path.name
        for path in ROOT.rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.compile"
    }
    assert users == {"compiled.py"}


def test_files_and_functions_stay_small():
    for path in ROOT.rglob("*.py"):
        assert path.read_text().count("\n") <= 300, path
        for node in ast.walk(tree_of(path)):
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
        for node in ast.walk(tree_of(path)):
            assert not (isinstance(node, ast.Attribute) and node.attr in STOPS), f"{path.name}:{node.lineno}"
    assert len(definition) > 8 and len(modules) > 10


SECTION = re.compile(r"^( *)(Args|Returns|Raises|Attributes):\n( *)", re.MULTILINE)


def test_docstrings_have_one_style():
    """What a section holds stands two columns to its right; names of code are between double backquotes, no roles."""
    checked = 0
    for module, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node, clean=False) or ""
                assert not re.search(r":\w+:`", text), f"{module}: {node}"
                for margin, section, indent in SECTION.findall(text):
                    assert len(indent) == len(margin) + 2, f"{module}: {section} in {text[:50]!r}"
                    checked += 1
    assert checked > 300


def calls_of(name):
    """Calls of a method of this name in the package: (place, names of its keywords)."""
    for module, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
                yield f"{module}:{node.lineno}", {keyword.arg for keyword in node.keywords}


def test_no_text_is_read_or_written_in_an_encoding_of_the_platform():
    """Nor what another program prints: ``LANG`` decides nothing."""
    for name in ("read_text", "write_text"):
        found = dict(calls_of(name))
        assert len(found) > 2 and not [place for place, keywords in found.items() if "encoding" not in keywords]
    assert not [place for place, keywords in calls_of("run") if "text" in keywords and "encoding" not in keywords]


def test_no_function_keeps_a_stream_of_the_time_when_it_was_defined():
    """Redirection and capture would not reach it."""
    for module, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
                assert not any(ast.unparse(each).startswith("sys.std") for each in defaults), f"{module}:{node.lineno}"
