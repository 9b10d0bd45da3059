"""``esper blueprint list | export | check | compile | demo | schema``: kinds of seed as documents."""

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from esper.runtime.blueprint_source import read_source
from esper.utils.documents import cause, to_json
from esper.utils.files import replace_file
from esper.utils.paths import user_path
from esper.utils.settings import Parser, SettingsError
from esper.utils.terminal import output

Command = Callable[[Sequence[str], TextIO], int | None]


def blueprints(arguments: Sequence[str], out: TextIO | None = None) -> int | None:
    """Run one of ``SUBCOMMANDS``.

    Args:
      arguments: words after ``esper blueprint``.
      out: where lines go.

    Raises:
      SettingsError: no such subcommand, or other words than it takes.
      ConfigError: a document that is refused.
      OSError: a file cannot be read or written.
      SystemExit: ``--help``.
    """
    out, words = output(out), list(arguments)
    if not words or words[0] in ("-h", "--help"):
        out.write("usage: esper blueprint COMMAND [--help]\n\n")
        out.write("".join(f"  {name:<9}{text}\n" for name, (text, _) in SUBCOMMANDS.items()))
        return None
    if words[0] not in SUBCOMMANDS:
        raise SettingsError(f"blueprint {words[0]!r}: expected {', '.join(SUBCOMMANDS)}")
    return SUBCOMMANDS[words[0]][1](words[1:], out)


def _list(words: Sequence[str], out: TextIO) -> None:
    """Names, sites, and what they are."""
    _parser("list", "The shipped blueprints.").parse_args(words)
    from esper.tezzeret.blueprints import shipped

    for name, document in shipped().items():
        cases = dict.fromkeys(
            "/".join(case.source) + ("->" if case.target else "") + "/".join(case.target) for case in document.cases
        )
        out.write(f"{name:<20}{', '.join(cases):<34}{document.description}\n")


def _export(words: Sequence[str], out: TextIO) -> None:
    """A shipped document as a file."""
    parser = _parser("export", "Write a shipped blueprint as a document.")
    parser.add_argument("name", help="see esper blueprint list")
    parser.add_argument("--to", metavar="FILE", default="", help="where (default: standard output)")
    given = parser.parse_args(words)
    from esper.tezzeret.blueprints.catalogue import names, shipped_bytes

    if given.name not in names():
        raise SettingsError(f"blueprint {given.name!r}: expected {', '.join(names())}")
    _put(shipped_bytes(given.name), given.to, out)


def _schema(words: Sequence[str], out: TextIO) -> None:
    """The JSON Schema of documents."""
    parser = _parser("schema", "Write the JSON Schema of documents.")
    parser.add_argument("--to", metavar="FILE", default="", help="where (default: standard output)")
    given = parser.parse_args(words)
    from esper.tezzeret.blueprints.published_schema import FILE

    _put(FILE.read_bytes(), given.to, out)


def _check(words: Sequence[str], out: TextIO) -> None:
    """Stages 1 and 2."""
    parser = _parser("check", "Read a document, and find its shapes and costs at a site; nothing is compiled.")
    parser.add_argument("file", help="a document, or the name of a shipped one")
    parser.add_argument(
        "--site", default="", help="such as conv:8x8x8 or conv:1x8x8->logits:10 (default: one that fits)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    given = parser.parse_args(words)
    from esper.tezzeret.blueprints import canonical, infer, parse
    from esper.tezzeret.blueprints.site_words import pair_for, pair_of, words_of

    data, place = read_source(given.file)
    began = time.perf_counter()
    document = parse(data, place)
    parsed = time.perf_counter()
    pair = pair_of(given.site) if given.site else pair_for(document)
    chosen = time.perf_counter()
    costs = infer(document, *pair)
    seconds = {"parse": parsed - began, "graph": time.perf_counter() - chosen}
    digest = hashlib.sha256(canonical(document)).hexdigest()
    if given.json:
        nodes = [node._asdict() for node in costs.nodes]
        facts = {**costs._asdict(), "nodes": nodes, "site": words_of(*pair), "sha256": digest, "seconds": seconds}
        out.write(to_json({"name": document.name, **facts}) + "\n")
        return
    out.write(f"{document.name}  sha256 {digest}\n")
    out.write(f"1 parse  passed  {1e3 * seconds['parse']:6.1f} ms  {len(data):,} bytes, {len(document.cases)} cases\n")
    out.write(f"2 graph  passed  {1e3 * seconds['graph']:6.1f} ms  at {words_of(*pair)}: {len(costs.nodes)} nodes, ")
    out.write(f"{costs.params:,} parameters, {costs.buffers:,} buffers, {costs.flops:,} FLOPs, {costs.bytes:,} bytes\n")
    for node in costs.nodes:
        shape = "x".join(map(str, node.shape))
        out.write(f"    {node.name:<24}{node.op:<16}{shape:<14}{node.flops:>14,}\n")


def _add(words: Sequence[str], out: TextIO) -> None:
    """For a run that goes on."""
    from esper.runtime.blueprint_requests import add

    add(words, out)


def _requests(words: Sequence[str], out: TextIO) -> None:
    """Of a run."""
    from esper.runtime.blueprint_requests import show

    show(words, out)


def _compile(words: Sequence[str], out: TextIO) -> int:
    """All seven stages."""
    from esper.runtime.blueprint_compile import compile_words

    return compile_words(words, out)


def _demo(words: Sequence[str], out: TextIO) -> int:
    """From a document to a network that grew it."""
    from esper.runtime.blueprint_demo import demo_words

    return demo_words(words, out)


def _put(data: bytes, to: str, out: TextIO) -> None:
    if to:
        _written(user_path(to), data)
        out.write(f"{to}\n")
    else:
        out.write(data.decode())


def _written(path: Path, data: bytes) -> None:
    try:
        replace_file(path, data)
    except OSError as error:
        raise SettingsError(f"--to {path}: {cause(error)}; expected a place that can be written to") from None


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    return Parser(prog=f"esper blueprint {name}", description=text, allow_abbrev=False)


SUBCOMMANDS: dict[str, tuple[str, Command]] = {
    "list": ("the shipped blueprints: list", _list),
    "export": ("one of them as a document: export NAME [--to FILE]", _export),
    "check": ("shapes and costs of a document: check FILE [--site conv:8x8x8[->logits:10]] [--json]", _check),
    "compile": ("the seven stages, and a store: compile FILE [--site ...] [--backend ...] [--store FOLDER]", _compile),
    "demo": ("a document, its stages, the store, another process, growth: demo", _demo),
    "schema": ("the JSON Schema of documents: schema [--to FILE]", _schema),
    "add": ("hand a document to a training run: add RUN FILE", _add),
    "requests": ("what became of a run's documents: requests RUN [--json]", _requests),
}
"""A line on each, and what runs."""
