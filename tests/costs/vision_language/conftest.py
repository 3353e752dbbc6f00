"""Lets the tests here share the files beside them (pytest imports tests by file, not by package)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
