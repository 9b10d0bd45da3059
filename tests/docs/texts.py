"""Documents taken apart: blocks, commands, code in sentences, links; and the package's own texts of errors."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

import esper

PACKAGE = Path(esper.__file__).parent
REPOSITORY = PACKAGE.parent
FOLDER = PACKAGE / "docs"
DOCUMENTS = [*sorted(FOLDER.glob("*.md")), PACKAGE / "CHANGELOG.md", REPOSITORY / ".github" / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


class Command(NamedTuple):
    """A command of a block.

    Attributes:
      document: its name.
      words: of it, without what precedes it (``VAR=value``) and without a comment.
      is_whole: whether it stands in a block, to be run as it is, and not in a sentence.
    """

    document: str
    words: tuple[str, ...]
    is_whole: bool


@cache
def text_of(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return str(path.relative_to(REPOSITORY))


def blocks(path, language):
    """Blocks of a language in a document."""
    return [body for kind, body in BLOCK.findall(text_of(path)) if kind == language]


def prose(path):
    """A document without its blocks."""
    return BLOCK.sub("", text_of(path))


def spans(path):
    """Code within sentences and tables."""
    return CODE.findall(prose(path))


def links(path):
    """Targets of links."""
    return LINK.findall(prose(path))


def anchors(path):
    """What links into a document may end in: its headings as GitHub spells them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def split(line):
    """Words of a line of a shell; comments, and assignments before the command, are left out."""
    words = shlex.split(re.sub(r"(^|\s)#.*$", "", line))
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return tuple(words)


def commands():
    """Every command in blocks of a shell, and every span of code that begins with ``esper``."""
    found = []
    for path in DOCUMENTS:
        lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
        found += [Command(name_of(path), split(line), True) for line in lines if split(line)]
        found += [Command(name_of(path), split(span), False) for span in spans(path) if span.startswith("esper ")]
    return found


def esper_words(words):
    """The words of a command after ``esper``; None of another program's command."""
    if "-m" in words and words[words.index("-m") + 1 :][:1] == ("esper",):
        return words[words.index("-m") + 2 :]
    return words[1:] if words[0] == "esper" else None


def transcripts():
    """(document, command, what it says) of every command whose answer is quoted."""
    found = []
    for path in DOCUMENTS:
        for body in blocks(path, "console"):
            for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
                line, _, said = part.partition("\n")
                found.append((name_of(path), split(line), said.strip()))
    return found


def _piece(node):
    """A literal's text; what is filled in is an ellipsis. None of what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


@cache
def source_texts():
    """Every text in the package's code, with ellipses for what is filled in: f-strings and ``%s`` of logging."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            text = _piece(node)
            if text is not None:
                found.add(re.sub(r"…+", "…", re.sub(r"%(\.\d+)?[sdrfg]|%\.0f", "…", text)))
    return frozenset(found)


@cache
def source_words():
    """Every word of the package's and the benchmarks' code."""
    files = [*PACKAGE.rglob("*.py"), *(REPOSITORY / "bench").glob("*.py")]
    return frozenset(word for path in files for word in re.findall(r"\w+", text_of(path)))
