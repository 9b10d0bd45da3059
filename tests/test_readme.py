"""The README's Python blocks run, in order, in one namespace; its commands are the ones CI uses."""

import re
from pathlib import Path

import esper

README = (Path(esper.__file__).parents[1] / "README.md").read_text()


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(blocks) >= 2
    assert namespace["state"].signals.val_accuracy.mean() > 20


def test_the_two_commands_are_marked():
    assert len(re.findall(r"<!-- command: (main|test) -->\n```bash\n", README)) == 2


def test_every_package_named_in_the_glossary_exists():
    names = re.findall(r"^\| `esper/(\w+)/?`", README, re.M)
    assert names and all((Path(esper.__file__).parent / name).is_dir() for name in names)
