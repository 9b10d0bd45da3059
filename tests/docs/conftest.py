"""What the tests of documents share: their texts, and what stands in them."""

import importlib.util
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("docs_texts", Path(__file__).with_name("texts.py"))
assert spec is not None and spec.loader is not None
sys.modules["docs_texts"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["docs_texts"])
