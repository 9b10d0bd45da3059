"""What failures mean: one table from errors to a cause, whether the same call may succeed later, and a remedy."""

import errno
import os
import re
import subprocess
from enum import Enum
from typing import NamedTuple

from esper.utils.documents import cause


class Nature(Enum):
    """Whose fault a failure is, and so what helps."""

    TRANSIENT = "transient"
    """The surroundings', for a moment: the same call may succeed when it is tried again."""
    LASTING = "lasting"
    """The surroundings', until somebody does something."""
    CALLER = "caller"
    """The call's own: it fails however often it is tried, and says nothing of the service."""
    UNKNOWN = "unknown"


class FailureCause(NamedTuple):
    """A row of the table.

    Attributes:
      name: short, for people.
      nature: see ``Nature``.
      remedy: what to do.
      numbers: of system errors (``errno``) that it stands for.
      kinds: exceptions that it stands for, where they carry no such number.
      words: pattern of texts that it stands for, beside the system's own words for ``numbers``.
      named: exceptions of packages that need not be loaded, by their full names.
    """

    name: str
    nature: Nature
    remedy: str
    numbers: tuple[int, ...] = ()
    kinds: tuple[type[BaseException], ...] = ()
    words: str = ""
    named: tuple[str, ...] = ()


OUT_OF_MEMORY = "out of memory"

CAUSES = (
    FailureCause(
        "service left alone",
        Nature.LASTING,
        "it failed too often just now; esper doctor says what it lacks",
        words=r"BreakerOpen|: left alone (after \d+ failures|while one)",
    ),
    FailureCause(
        "disk full",
        Nature.LASTING,
        "free some space, or give the run another disk; then esper dlq retry",
        (errno.ENOSPC, errno.EDQUOT),
        words=r"database or disk is full",
    ),
    FailureCause(
        "disk fails",
        Nature.LASTING,
        "look at the disk (dmesg, smartctl); give the run another one; then esper dlq retry",
        (errno.EIO,),
        words=r"disk I/O error|database disk image is malformed",
    ),
    FailureCause(
        OUT_OF_MEMORY,
        Nature.LASTING,
        "fewer environments (--num-envs), or more memory (ulimit -v, the container's limit)",
        (errno.ENOMEM,),
        (MemoryError,),
        words=r"can't allocate memory|not enough memory|out of memory|bad_alloc",
        named=("torch.OutOfMemoryError",),
    ),
    FailureCause(
        "too many open files",
        Nature.TRANSIENT,
        "raise the limit (ulimit -n)",
        (errno.EMFILE, errno.ENFILE),
        words=r"unable to open database file",
    ),
    FailureCause(
        "not allowed",
        Nature.LASTING,
        "give this user the right to write there, or name another place (--out, XDG_CACHE_HOME)",
        (errno.EACCES, errno.EPERM, errno.EROFS),
        words=r"attempt to write a readonly database",
    ),
    FailureCause("nothing there", Nature.LASTING, "put it back, or name another place", (errno.ENOENT, errno.ENOTDIR)),
    FailureCause(
        "busy",
        Nature.TRANSIENT,
        "wait until the other process has finished, or end it",
        (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETXTBSY, errno.EDEADLK),
        words=r"database (table )?is locked",
    ),
    FailureCause(
        "too slow",
        Nature.TRANSIENT,
        "look at the machine's load and the network; try again",
        (errno.ETIMEDOUT,),
        (TimeoutError, subprocess.TimeoutExpired),
        words=r"timed out",
    ),
    FailureCause(
        "connection lost",
        Nature.TRANSIENT,
        "look at the service and the network; try again",
        (
            errno.ECONNRESET,
            errno.ECONNREFUSED,
            errno.ECONNABORTED,
            errno.EPIPE,
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
        ),
        (ConnectionError, EOFError),
    ),
    FailureCause(
        "killed",
        Nature.TRANSIENT,
        "look for what ended it (dmesg names processes that memory ran out for)",
        words=r"killed by SIG|died with <?Signals?\.|exit status 13[47]\b",
    ),
    FailureCause(
        "program failed",
        Nature.LASTING,
        "its first line of output says why; a compiler is chosen by CXX",
        kinds=(subprocess.CalledProcessError,),
        words=r"returned non-zero exit status|building .* failed",
    ),
    FailureCause(
        "numbers not finite",
        Nature.CALLER,
        "lower the learning rates or the reward's weights; metrics.jsonl says from which round on",
        kinds=(FloatingPointError,),
        words=r"not finite",
    ),
    FailureCause(
        "value not allowed",
        Nature.CALLER,
        "the message says what is allowed",
        kinds=(ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError),
        words=r": expected ",
    ),
)
"""In order: of several that fit, the first counts."""

WANTS = (OUT_OF_MEMORY, "too many open files")
"""Causes that lie in this process."""

UNKNOWN = FailureCause("unknown", Nature.UNKNOWN, "report it, with the lines before it")


def _pattern(row: FailureCause) -> re.Pattern[str]:
    texts = [re.escape(os.strerror(number)) for number in row.numbers]
    return re.compile("|".join([*texts, *([row.words] if row.words else [])]) or r"(?!)", re.IGNORECASE)


PATTERNS = {row.name: _pattern(row) for row in CAUSES}
"""Texts of each cause."""


def cause_of(error: BaseException) -> FailureCause:
    """What an error means: by its number, else by its kind, else by its words; ``UNKNOWN`` otherwise."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None:
        found = next((row for row in CAUSES if number in row.numbers), None)
        if found is not None:
            return found
    if isinstance(error, subprocess.CalledProcessError) and error.returncode < 0:
        return by_name("killed")
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    found = next((row for row in CAUSES if isinstance(error, row.kinds) or names & {*row.named}), None)
    return found or cause_of_text(cause(error))


def cause_of_text(text: str) -> FailureCause:
    """What a line of a log means; ``UNKNOWN`` where it says none of the causes."""
    return next((row for row in CAUSES if PATTERNS[row.name].search(text)), UNKNOWN)


def is_want(error: BaseException) -> bool:
    """Whether this process lacks memory or handles, so that what it tried says nothing of what it tried it on.

    Errors of readers count by their kind, not by words that a file can put into them.
    """
    return isinstance(error, OSError | MemoryError | RuntimeError) and cause_of(error).name in WANTS


def by_name(name: str) -> FailureCause:
    """The row of that name; ``UNKNOWN`` where there is none."""
    return next((row for row in CAUSES if row.name == name), UNKNOWN)
