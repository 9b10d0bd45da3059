"""Makes ``generate.py``, ``judge.py`` and ``broken.py`` known as ``blueprint_generate`` and so on."""

import importlib.util
import sys
from pathlib import Path

for name in ("generate", "judge", "broken"):
    spec = importlib.util.spec_from_file_location(f"blueprint_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"blueprint_{name}"] = module
    spec.loader.exec_module(module)
