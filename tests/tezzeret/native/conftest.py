"""Makes ``networks.py`` known as ``native_networks``."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("native_networks", Path(__file__).with_name("networks.py"))
networks = importlib.util.module_from_spec(_spec)
sys.modules["native_networks"] = networks
_spec.loader.exec_module(networks)
