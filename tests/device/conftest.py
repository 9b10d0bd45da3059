"""Makes ``fake.py`` known as ``device_fake``."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("device_fake", Path(__file__).with_name("fake.py"))
fake = importlib.util.module_from_spec(_spec)
sys.modules["device_fake"] = fake
_spec.loader.exec_module(fake)
