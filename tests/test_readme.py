"""Every Python block of the README works pasted alone, every command runs, and names mean what is there.

``.ci/run`` runs the commands once more, in processes of their own and with Inductor where the default is Inductor.
"""

import importlib.util
import re
from pathlib import Path

import pytest

import esper
from esper.__main__ import COMMANDS, WORDS, main

README = (Path(esper.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SPEC = importlib.util.spec_from_file_location("readme_commands", Path(__file__).with_name("readme_commands.py"))
assert SPEC is not None and SPEC.loader is not None
readme = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(readme)

BLOCKS = readme.blocks("python")


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_python_block_works_pasted_alone(number, capsys):
    namespace: dict = {"__name__": "pasted"}
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), namespace)
    assert "nan" not in capsys.readouterr().out


def test_there_are_as_many_blocks_and_commands_as_there_were():
    assert len(BLOCKS) >= 8 and len(readme.commands()) >= 9
    assert {words[0] for words in readme.commands()} == {*COMMANDS, *WORDS}


def test_every_command_runs_in_order_at_small_sizes(tmp_path, monkeypatch, capfd):
    """Later commands read the runs of earlier ones, so they run in one folder. Some start processes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(readme.STORE, str(tmp_path / "store"))
    readme.prepare(tmp_path)
    for words in readme.commands():
        status = main(readme.small(words, tmp_path))
        said = capfd.readouterr()
        assert status == 0, f"{words}: {said.err}"
        assert said.out


def test_the_two_commands_are_marked():
    assert len(re.findall(r"<!-- command: (main|test) -->\n```bash\n", README)) == 2


def test_every_package_named_in_the_glossary_exists():
    names = re.findall(r"^\| `esper/(\w+)/?`", README, re.M)
    assert names and all((Path(esper.__file__).parent / name).is_dir() for name in names)
