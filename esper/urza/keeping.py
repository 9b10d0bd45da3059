"""Keeping small things from run to run: in a file that only its owner may read, or in Redis for a day.

Both hold the bytes of one parcel (``esper.urza.parcel``) and are replaced in one step: a reader sees the old
one or the new one. Of two that write, the later wins.
"""

from typing import Any

from torch import Tensor

from esper.urza.checkpoint import Checkpoint, CheckpointError
from esper.urza.parcel import decode, encode
from esper.utils.documents import cause
from esper.utils.files import read_file, replace_file
from esper.utils.paths import user_path

SCHEMES = ("redis://", "rediss://", "unix://")
"""How addresses of a Redis server begin."""

LIFETIME = 86_400
"""Seconds that an entry of Redis lives after it was last written."""

PREFIX = "esper:"
"""How keys in Redis begin."""

PRIVATE = 0o600

LARGEST = 1 << 30
"""Bytes that are read of a file."""

WAIT = 5.0
"""Seconds after which a server that says nothing is given up."""


def keep(place: str, tensors: dict[str, Tensor], table: dict[str, Any]) -> None:
    """Write what is to be kept.

    Args:
      place: a file, or an address such as ``redis://host:6379/0#name``.
      tensors, table: see ``esper.urza.parcel.encode``.

    Raises:
      CheckpointError: it cannot be written there; one line.
    """
    if place.startswith(SCHEMES):
        _ask(place, lambda client, key: client.set(key, encode(tensors, table), ex=LIFETIME))
        return
    try:
        replace_file(user_path(place), encode(tensors, table), PRIVATE)
    except OSError as error:
        raise CheckpointError(f"{place}: {error.strerror}; expected a place for a file") from None


def recall(place: str) -> Checkpoint | None:
    """What was kept; None where nothing was, or where its time is over.

    Raises:
      CheckpointError: it cannot be read, or was altered; one line.
    """
    if not place.startswith(SCHEMES):
        try:
            data = read_file(user_path(place), LARGEST)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{place}: {cause(error)}; expected what esper kept there") from None
        return decode(data, place)
    data = _ask(place, lambda client, key: client.get(key))
    return None if data is None else decode(data, shown_place(place))


def shown_place(place: str) -> str:
    """A place without what may be a password."""
    scheme, found, rest = place.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found else place


def _ask(place: str, what: Any) -> Any:
    """What a server answers to a question, a function of its client and of the key."""
    try:
        import redis
    except ImportError:
        raise CheckpointError(f"{shown_place(place)}: needs redis; pip install 'esper-growth[redis]'") from None
    address, _, name = place.partition("#")
    try:
        with redis.Redis.from_url(address, socket_timeout=WAIT, socket_connect_timeout=WAIT) as client:
            return what(client, f"{PREFIX}{name or 'bandits'}")
    except (redis.RedisError, ValueError, OSError) as error:
        raise CheckpointError(f"{shown_place(place)}: {cause(error)}; expected a Redis server") from None
