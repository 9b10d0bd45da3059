"""Makes ``worlds.py`` and ``proxy.py`` known as ``resilience_worlds`` and ``resilience_proxy``."""

import importlib.util
import sys
from pathlib import Path

for _name in ("worlds", "proxy"):
    _spec = importlib.util.spec_from_file_location(f"resilience_{_name}", Path(__file__).with_name(f"{_name}.py"))
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[f"resilience_{_name}"] = _module
    _spec.loader.exec_module(_module)
