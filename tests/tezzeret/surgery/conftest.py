"""Makes ``nets.py`` known as ``surgery_nets``."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("surgery_nets", Path(__file__).with_name("nets.py"))
nets = importlib.util.module_from_spec(_spec)
sys.modules["surgery_nets"] = nets
_spec.loader.exec_module(nets)
