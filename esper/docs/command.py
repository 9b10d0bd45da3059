"""``esper docs list | show | export | api``: the documents that are shipped, and the API reference of docstrings."""

import argparse
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from esper.nissa.sinks.optional import optional_module
from esper.utils.documents import cause, one_line
from esper.utils.files import replace_file
from esper.utils.paths import user_path
from esper.utils.settings import Parser, SettingsError
from esper.utils.terminal import output
from esper.version import __version__

FOLDER = Path(__file__).parent
"""Where the documents are."""

PACKAGE = "esper"


def document_files() -> dict[str, Path]:
    """The shipped documents: file by name, such as ``guide``, and the changelog; sorted by name."""
    found = {path.stem.lower(): path for path in (*FOLDER.glob("*.md"), FOLDER.parent / "CHANGELOG.md")}
    return dict(sorted(found.items()))


def title_of(path: Path) -> str:
    """A document's title: its first line."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def documents(arguments: Sequence[str], out: TextIO | None = None) -> int:
    """Run ``list | show NAME | export DIRECTORY | api DIRECTORY [--modules NAME,...]``.

    Args:
      arguments: words after ``esper docs``.
      out: where lines, or a document, go.

    Returns:
      exit status; 1 where a module is missing from the API reference because it could not be imported.

    Raises:
      SettingsError: the words are not as above, there is no such document, or the directory cannot be written.
      SinkError: pdoc is not installed.
      SystemExit: ``--help``.
    """
    out, given = output(out), _parse(arguments)
    return ACTIONS[given.action](given, out)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    text = "The documents that are shipped, and an API reference made of the docstrings."
    parser = Parser(prog="esper docs", description=text, allow_abbrev=False)
    parser.add_argument("action", choices=tuple(ACTIONS))
    parser.add_argument("place", nargs="?", default="", help="of show: a name; of export and api: a directory")
    text = f"of api: modules and packages with commas between (default: {PACKAGE}, all of it)"
    parser.add_argument("--modules", default=PACKAGE, metavar="NAME,...", help=text)
    given = parser.parse_args(list(arguments))
    if given.action != "api" and given.modules != PACKAGE:
        raise SettingsError(f"docs {given.action} --modules {given.modules}: expected --modules with api alone")
    if (given.action == "list") == bool(given.place):
        wanted = {"list": "no further word", "show": f"one of {', '.join(document_files())}"}
        raise SettingsError(f"docs {given.action}: expected {wanted.get(given.action, 'a directory')}")
    return given


def _list(given: argparse.Namespace, out: TextIO) -> int:
    for name, path in document_files().items():
        out.write(f"{name:<16}{title_of(path)}\n")
    return 0


def _show(given: argparse.Namespace, out: TextIO) -> int:
    known = document_files()
    if given.place not in known:
        raise SettingsError(f"docs show {given.place!r}: expected one of {', '.join(known)}")
    out.write(known[given.place].read_text(encoding="utf-8"))
    return 0


def _export(given: argparse.Namespace, out: TextIO) -> int:
    """Copy documents and examples; the links among them hold there."""
    folder = _directory(given.place)
    sources = [*FOLDER.glob("*.md"), *FOLDER.glob("examples/*.py")]
    copies = {path.relative_to(FOLDER): path for path in sorted(sources)}
    for name, path in {**copies, Path("CHANGELOG.md"): FOLDER.parent / "CHANGELOG.md"}.items():
        try:
            (folder / name).parent.mkdir(exist_ok=True)
            replace_file(folder / name, path.read_bytes())
        except OSError as error:
            raise _unwritable(folder / name, error) from None
        out.write(f"{folder / name}\n")
    return 0


def _api(given: argparse.Namespace, out: TextIO) -> int:
    """Write the API reference as pages of HTML, and say what could not be imported."""
    pdoc = optional_module("pdoc", "docs api", "pdoc", "docs")
    names = [name.strip() for name in given.modules.split(",")]
    for name in names:
        if not (name.split(".")[0] == PACKAGE and _is_there(name)):
            raise SettingsError(f"--modules {name!r}: expected modules of {PACKAGE} with commas between")
    names = sorted({module for name in names for module in modules_of(name)})
    folder = _directory(given.place)
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"{PACKAGE} {__version__}")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            pdoc.pdoc(*names, output_directory=folder)
        except OSError as error:
            raise _unwritable(folder, error) from None
    lost = [str(each.message) for each in seen if issubclass(each.category, UserWarning)]
    lost = [one_line(text.partition("\n")[0]) for text in lost if "Error importing" in text]
    out.writelines(f"left out: {line}\n" for line in lost)
    out.write(f"{sum(1 for _ in folder.rglob('*.html'))} pages: {folder / 'index.html'}\n")
    return int(bool(lost))


def modules_of(name: str) -> list[str]:
    """A module of the package and all below it, by name. Kernels for GPUs are left out: to import them needs Triton."""
    path = FOLDER.parents[1].joinpath(*name.split("."))
    if not path.is_dir():
        return [name]
    files = [file.relative_to(path.parent) for file in path.rglob("*.py") if file.parent.name != "kernels"]
    inside = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    above = name.rpartition(".")[0]
    return [f"{above}.{module}" if above else module for module in inside]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _directory(place: str) -> Path:
    """A directory, made if it is not there."""
    folder = user_path(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return folder


def _unwritable(path: Path, error: OSError) -> SettingsError:
    return SettingsError(f"{path}: {error.strerror or cause(error)}; expected a directory that can be written")


ACTIONS: dict[str, Callable[[argparse.Namespace, TextIO], int]] = {
    "list": _list,
    "show": _show,
    "export": _export,
    "api": _api,
}
