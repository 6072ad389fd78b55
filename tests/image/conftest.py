"""Lets the tests of images use the programs of the tests of tracing."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "native"))
