"""Objects in a bucket of S3 or its kin, through ``obstore``.

Nothing rests on conditional writes, which servers of this kind take differently: of two writers of one key both write
the same bytes. The mode is set all the same, so that it does not depend on a version's default. A forked child has no
use of its parent's client, and is told so: it opens a store of its own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

from esper.urza.store.addresses import package, shown_address, told
from esper.urza.store.connections import ServiceLost
from esper.urza.store.contract import FORMAT, StoreError, is_id
from esper.urza.store.objects import Stored

SCHEMES = ("s3", "gs", "az")
"""How addresses of buckets begin."""

TIMES = {"connect_timeout": "2s", "timeout": "60s"}


class BucketObjects:
    """Objects in a bucket; see ``Objects``."""

    def __init__(self, address: str) -> None:
        """Nothing is asked yet.

        Args:
          address: ``s3://BUCKET/PREFIX?endpoint=URL&region=NAME``; keys come from the environment, as of any client.

        Raises:
          StoreError: another address, or the package is not installed.
        """
        try:
            parts = urlsplit(address)
            options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        except ValueError:
            parts, options = urlsplit(""), {}
        if parts.scheme not in SCHEMES or not parts.netloc:
            expected = " or ".join(f"{scheme}://BUCKET" for scheme in SCHEMES)
            raise StoreError(f"{shown_address(address)}: expected {expected}, or nothing for a directory")
        self._obstore, self._address = package("obstore", address), address
        self._pid = os.getpid()
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/v{FORMAT}/" if prefix else f"v{FORMAT}/"
        plain = {"allow_http": True} if options.get("endpoint", "").startswith("http://") else {}
        mode = {"conditional_put": "etag"} if parts.scheme == "s3" else {}
        try:
            self._store = package("obstore.store", address).from_url(
                f"{parts.scheme}://{parts.netloc}",
                client_options={**TIMES, **plain},
                retry_config={"max_retries": 0},
                **mode,
                **options,
            )
        except Exception as error:  # the client's own kinds, which differ between versions
            raise StoreError(f"{told(error, address)}; expected an address of a bucket") from None

    def _key(self, id: str) -> str:
        return f"{self._prefix}{id[:2]}/{id}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        if self._pid != os.getpid():  # threads of the client's are not there, so that a call would wait for ever
            raise ServiceLost(f"{shown_address(self._address)}: opened before this process was forked")
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # the client's own kinds, which differ between versions
            if isinstance(error, MemoryError):
                raise
            raise ServiceLost(told(error, self._address)) from None

    def put(self, id: str, data: bytes) -> None:
        """See ``Objects``."""
        with self._told():
            self._obstore.put(self._store, self._key(id), data)

    def get(self, id: str) -> bytes | None:
        """See ``Objects``."""
        try:
            with self._told():
                return bytes(self._obstore.get(self._store, self._key(id)).bytes())
        except FileNotFoundError:
            return None

    def exists(self, id: str) -> bool:
        """See ``Objects``."""
        return self.stored(id) is not None

    def remove(self, id: str) -> None:
        """See ``Objects``."""
        try:
            with self._told():
                self._obstore.delete(self._store, self._key(id))
        except FileNotFoundError:
            return

    def stored(self, id: str) -> Stored | None:
        """See ``Objects``."""
        try:
            with self._told():
                found = self._obstore.head(self._store, self._key(id))
        except FileNotFoundError:
            return None
        return Stored(id, int(found["size"]), found["last_modified"].timestamp())

    def list(self) -> Iterator[Stored]:
        """See ``Objects``."""
        with self._told():
            for batch in self._obstore.list(self._store, self._prefix):
                for found in batch:
                    id = found["path"].rpartition("/")[2]
                    if is_id(id):
                        yield Stored(id, int(found["size"]), found["last_modified"].timestamp())

    def sweep(self, before: float) -> int:
        """See ``Objects``: a bucket shows nothing that is half-done."""
        return 0
