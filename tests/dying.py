"""What other processes do in tests of searches: they must be able to import it."""

import os
from pathlib import Path

from onnxshrink.search.evolution.evaluating import Outcome


def evaluated(folder: str, recipe: str) -> Outcome:
    """Ends its process for palettes; fails for codes; all else is well."""
    Path(folder, f"{os.getpid()}").touch()
    if "share-codebook" in recipe:
        os._exit(3)
    if "quantize-rd" in recipe:
        raise ValueError("a bug")
    return Outcome(len(recipe), 0.5, 0.1)
