"""Standard output as it is when something is written, whatever it can encode."""

import io
import sys
from typing import TextIO, cast

PLAIN = {"█": "#", "░": ".", "±": "+/-", "…": "..."}
"""What stands for characters that an encoding lacks; others become question marks."""


class Output(io.TextIOBase):
    """A stream that writes what its encoding lacks in other characters, and never fails for it.

    Attributes:
      stream: where it goes.
      code: its encoding.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.code = stream, getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write; returns the number of characters that were asked for."""
        if not self._takes(text):
            letters = (letter if self._takes(letter) else PLAIN.get(letter, letter) for letter in text)
            self.stream.write("".join(letters).encode(self.code, "replace").decode(self.code))
        else:
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def close(self) -> None:
        """Nothing: the stream is somebody else's, and may be closed when Python collects this, which closes it."""

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()

    def _takes(self, text: str) -> bool:
        try:
            text.encode(self.code)
        except UnicodeEncodeError:
            return False
        return True


def output(out: TextIO | None = None) -> TextIO:
    """Where a command writes.

    Args:
      out: a stream; None = the process's standard output as it is now (a process may have none: nothing is written).
    """
    stream = sys.stdout if out is None else out
    return cast(TextIO, stream if isinstance(stream, Output) else Output(stream or io.StringIO()))
