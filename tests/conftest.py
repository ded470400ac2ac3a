"""What tests of several folders share; and processes that they start import the package under test."""

import os
from pathlib import Path

from tests.support.full_disk import small_disk


__all__ = ["small_disk"]

# Wherever an installed one lies.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
