"""Makes ``worlds.py`` known as ``resilience_worlds``."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("resilience_worlds", Path(__file__).with_name("worlds.py"))
worlds = importlib.util.module_from_spec(_spec)
sys.modules["resilience_worlds"] = worlds
_spec.loader.exec_module(worlds)
