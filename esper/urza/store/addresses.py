"""Addresses of services: what of them may be shown, and packages that they need."""

import importlib
from types import ModuleType
from urllib.parse import parse_qsl, unquote, urlsplit

from esper.urza.keeping import shown_place
from esper.urza.store.contract import StoreError
from esper.utils.documents import cause, one_line

OPEN = ("region", "aws_region", "endpoint", "aws_endpoint", "db", "sslmode", "connect_timeout", "application_name")
"""Parameters of an address whose values may be shown; any other may be a secret."""

HIDDEN = "***"


def shown_address(address: str) -> str:
    """An address without what may be a password, on one line."""
    place, asked, parameters = shown_place(address).partition("?")
    if not asked:
        return one_line(place)
    names = [name if "=" not in name else name.partition("=")[0] for name in parameters.split("&")]
    return one_line(f"{place}?{'&'.join(f'{name}={HIDDEN}' for name in names)}")


def secrets_of(address: str) -> tuple[str, ...]:
    """What must not stand in a message on an address."""
    user = address.partition("://")[2].rpartition("@")[0]
    found = [user, user.partition(":")[2]]
    try:
        parts = urlsplit(address)
        found += [parts.password or ""]
        found += [value for name, value in parse_qsl(parts.query) if name.lower() not in OPEN]
    except ValueError:
        found += address.split()
    return tuple({text for each in found if each for text in (each, unquote(each))})


def told(error: BaseException, address: str) -> str:
    """An error of a service on one line: the address and the error's own words, without secrets."""
    text = cause(error, 1000)
    for secret in sorted(secrets_of(address), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return f"{shown_address(address)}: {text[:200]}"


def package(name: str, address: str) -> ModuleType:
    """A package that a service needs.

    Raises:
      StoreError: it is not installed; one line.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        needed = f"needs {name.partition('.')[0]}; pip install 'esper-growth[store]'"
        raise StoreError(f"{shown_address(address)}: {needed}") from None
