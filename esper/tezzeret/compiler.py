"""The C++ compiler of this machine, which Inductor and the native library need alike."""

import os
import shutil

COMPILERS = ("c++", "g++", "clang++", "cl")
"""Programs one of which Inductor needs on a CPU; the environment variable CXX names another."""


def find_compiler() -> str | None:
    """Path of a C++ compiler, or None."""
    names = (os.environ.get("CXX", ""), *COMPILERS)
    return next((path for name in names if name and (path := shutil.which(name))), None)
