"""Makes ``chains.py`` known as ``kernel_chains``."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("kernel_chains", Path(__file__).with_name("chains.py"))
chains = importlib.util.module_from_spec(_spec)
sys.modules["kernel_chains"] = chains
_spec.loader.exec_module(chains)
