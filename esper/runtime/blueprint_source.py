"""Where the bytes of a blueprint document come from."""

from esper.utils.documents import cause
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError


def read_source(text: str) -> tuple[bytes, str]:
    """The bytes of a document, and what messages call it: a file, or else the name of one that is shipped.

    Raises:
      SettingsError: neither.
    """
    from esper.tezzeret.blueprints.catalogue import names, shipped_bytes
    from esper.tezzeret.blueprints.refusals import LIMITS

    path = user_path(text)
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(LIMITS.bytes + 1), text
    except (OSError, ValueError) as error:
        raise SettingsError(f"{text}: {cause(error)}; expected a file that can be read") from None
    if text in names():
        return shipped_bytes(text), text
    raise SettingsError(f"blueprint {text!r}: no such file; expected one, or the name of a shipped blueprint")
