"""Text as a dataset: characters are the tokens, and the target of a position is the character that follows.

text        t h e   h o s t   l e a r n s
inputs     [t h e   h]                            one window of block = 5 characters
targets      [h e   h o]                          the same window, one character on
inputs               [o s t   l]  ...             the next window begins where the last one's targets end
"""

from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor

from esper.tolaria.data import Dataset, DatasetError, Part, validate

UNKNOWN = "\ufffd"
"""Stands for every character that is too rare for the vocabulary; the last of the vocabulary."""

HELD_OUT = 0.1
"""Share of a text, at its end, that does not train: its first half validates, its second half is the test set."""

SPLIT = "the text's last tenth is held out; its first half validates, its second half is the test set"


def python_topics() -> str:
    """English of which every CPython carries a copy: the topics of its ``help()``, about 450,000 characters.

    The topics come in the order of their names, each stripped, with an empty line between them. The texts are edited
    from one CPython release to the next, so numbers measured on them belong to a release; they are read from the
    interpreter that runs and are under its licence.
    """
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def vocabulary_of(text: str, limit: int) -> str:
    """The characters that become tokens, in the order of their code points; the position is the token.

    Args:
      text: anything.
      limit: most tokens. If the text has more characters, the most frequent ``limit - 1`` are kept (of equally
        frequent ones the lower code point) and UNKNOWN, put last, stands for the others.
    """
    points, counts = np.unique(_code_points(text), return_counts=True)
    rest = ""
    if len(points) > limit:
        points, rest = np.sort(points[np.argsort(-counts, kind="stable")[: limit - 1]]), UNKNOWN
    return "".join(map(chr, points)) + rest


def encode(text: str, vocabulary: str) -> Tensor:
    """Tokens of a text, int64 [characters]; what the vocabulary does not hold becomes its last token."""
    known = _code_points(vocabulary)
    order = np.argsort(known, kind="stable")
    points = _code_points(text)
    place = order[np.searchsorted(known[order], points).clip(max=len(known) - 1)]
    return torch.from_numpy(np.where(known[place] == points, place, len(known) - 1).astype(np.int64))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def characters(text: str, block: int, max_vocabulary: int = 128, name: str = "characters") -> Dataset:
    """Next-character prediction on a text.

    The text's last tenth is held out and the rest trains; of that tenth the first half validates and the second is the
    test set. No character is in two parts. Every part is cut into windows of ``block`` inputs that do not overlap (a
    tail too short for one is dropped), so every character of a part but the first is a target at most once. No
    randomness.

    Args:
      text: what to learn.
      block: positions T of a window, >= 1.
      max_vocabulary: tokens at most, >= 2; see ``vocabulary_of``.
      name: the dataset's.

    Returns:
      inputs and targets int64 [N, block], classes = the vocabulary's length.

    Raises:
      DatasetError: a text of one character over and over, a part too short for one window, or a number out of range.
    """
    for field, value, least in (("block", block, 1), ("max_vocabulary", max_vocabulary, 2)):
        if value < least:
            raise DatasetError(f"dataset {name!r}: {field}: found {value}, expected at least {least}")
    vocabulary = vocabulary_of(text, max_vocabulary)
    if len(vocabulary) < 2:
        raise DatasetError(f"dataset {name!r}: text: found {len(vocabulary)} different characters, expected at least 2")
    tokens = encode(text, vocabulary)
    held_out = int(len(tokens) * HELD_OUT)
    validates = held_out // 2
    if validates <= block:
        least = int(2 * (block + 1) / HELD_OUT)
        raise DatasetError(
            f"dataset {name!r}: text: found {len(tokens)} characters, expected about {least} for windows of {block}"
        )
    cuts = [len(tokens) - held_out, validates, held_out - validates]
    train, validation, test = (_windows(part, block) for part in tokens.split(cuts))
    return validate(Dataset(name, train, validation, test, len(vocabulary), SPLIT))


def _windows(tokens: Tensor, block: int) -> Part:
    """Inputs and targets [windows, block]; the last target of a window is the first input of the next."""
    windows = tokens.unfold(0, block + 1, block)
    return Part(windows[:, :-1], windows[:, 1:])
