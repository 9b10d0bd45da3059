"""The front door of hand-written kernels, whose sources are in other languages.

In a checkout the C++ sources are in ``<repository>/kernels``; in a wheel they are beside this file.
The guard keeps an installed wheel from adopting another project's top-level ``kernels`` package.
"""

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if (_ROOT / "pyproject.toml").is_file():
    __path__.append(str(_ROOT / "kernels"))
