"""Makes ``states.py`` known as ``tezzeret_states``."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("tezzeret_states", Path(__file__).with_name("states.py"))
states = importlib.util.module_from_spec(_spec)
sys.modules["tezzeret_states"] = states
_spec.loader.exec_module(states)
