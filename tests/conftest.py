"""Processes that tests start import the package under test, wherever an installed one lies."""

import os
from pathlib import Path


os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
