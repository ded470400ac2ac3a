"""What tests of several folders share; and processes that they start import the package under test."""

import os
from pathlib import Path

import torch

from tests.support.full_disk import small_disk


__all__ = ["small_disk"]

# Wherever an installed one lies.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

if not torch.cuda.is_available():
    # Triton kernels run in Triton's interpreter, which must be chosen before their module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")
