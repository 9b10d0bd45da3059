"""Whatever is public in the package has a docstring: modules, classes, functions, methods, properties."""

import ast

from docs_texts import PACKAGE, text_of


def public(node, place, inside_class=False):
    """Public definitions below a node, and what they are called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            told = {ast.unparse(each).rpartition(".")[2] for each in child.decorator_list}
            if not told & {"overload", "setter"}:
                yield f"{place}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{place}.{child.name}", True)
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from public(child, place, inside_class)


def test_every_public_name_has_a_docstring():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        tree, place = ast.parse(text_of(path)), ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found[place] = tree
        found |= dict(public(tree, place))
    lacking = sorted(name for name, node in found.items() if not (ast.get_docstring(node) or "").strip())
    assert not lacking
    assert len(found) > 1500
