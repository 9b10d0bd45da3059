"""What is asked of the stages, and the key under which equal requests find one another's results."""

import functools
import hashlib
import json
import platform
import subprocess
from typing import Any, NamedTuple

import torch

from esper.leyline.config import ConfigError
from esper.tezzeret.blueprints.site_words import pair_of
from esper.tezzeret.choose import AUTO
from esper.tezzeret.compiler import processor
from esper.tezzeret.native.library import library, pack
from esper.tezzeret.stages.native_form import ISA
from esper.tezzeret.toolchain import build_name
from esper.utils.documents import shown
from esper.version import __version__

FORMAT = 1
"""Of packages, of keys, and of what the stages mean; another number where results of old ones shall not be found."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}

BACKENDS = ("auto", "native", "inductor", "eager")


class CompileJob(NamedTuple):
    """What is to be compiled, for what.

    Attributes:
      document: bytes of a blueprint document.
      place: what messages call it.
      site: in words (``esper.tezzeret.blueprints.site_words``); empty: the first standard one that fits.
      dtype: of ``DTYPES``.
      backend: of ``BACKENDS``.
      device: as torch has it.
    """

    document: bytes
    place: str = "blueprint"
    site: str = ""
    dtype: str = "float32"
    backend: str = "auto"
    device: str = "cpu"

    def check(self) -> None:
        """Nothing, where every word is known.

        Raises:
          ConfigError: one is not.
        """
        for name, known in (("dtype", tuple(DTYPES)), ("backend", BACKENDS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} = {shown(getattr(self, name))}: expected {', '.join(known)}")
        if self.site:
            pair_of(self.site)
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise ConfigError(f"device = {shown(self.device)}: expected one that torch knows") from None

    @property
    def backends(self) -> tuple[str, ...]:
        """What is tried, in order."""
        if self.backend != "auto":
            return (self.backend,)
        return AUTO.get((torch.device(self.device).type, DTYPES[self.dtype]), ("eager",))


def key_text(request: CompileJob, canonical: bytes) -> str:
    """The key of a request: 64 hexadecimal digits; equal where the same would be compiled, here.

    Args:
      request: what is asked, with the site that was found.
      canonical: the document's canonical bytes.
    """
    asked = {
        "format": FORMAT,
        "document": hashlib.sha256(canonical).hexdigest(),
        "site": request.site,
        "dtype": request.dtype,
        "backends": request.backends,
        "device": device_facts(request.device),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "build": _build() if "native" in request.backends else "",
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of what the code depends on."""
    return {"esper": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def device_facts(device: str) -> dict[str, Any]:
    """A device: of CUDA its name and capability, else the machine and its instruction set."""
    place = torch.device(device)
    if place.type == "cuda":
        return {
            "device": "cuda",
            "name": torch.cuda.get_device_name(place),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(place))),
        }
    digest = hashlib.sha256(processor().encode()).hexdigest()[:16]
    return {"device": place.type, "machine": platform.machine(), "instruction_set": _isa(), "processor": digest}


def _isa() -> str:
    """The instruction set of the native library; empty where there is none."""
    try:
        return ISA.get(platform.machine().lower(), {}).get(pack(), f"{pack()} lanes") if library() is not None else ""
    except ValueError:
        return ""


@functools.cache
def _build() -> str:
    try:
        return build_name()
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
