"""How much of the long tests is tried: a share by default, all before a release.

``ONNXSHRINK_FUZZ`` is the number of random executions of each fuzz test (10000 and more are a long
run), from which others derive theirs, and ``ONNXSHRINK_FUZZ_SEED`` what they start from;
``ONNXSHRINK_ORACLE=all`` tries every case of others' models instead of a fixed share.
"""

import os
import zlib

FUZZ = int(os.environ.get("ONNXSHRINK_FUZZ", "1000"))
SEED = int(os.environ.get("ONNXSHRINK_FUZZ_SEED", "0"))
#: How often a writer is killed at some moment.
KILLS = min(20, max(5, FUZZ // 500))
#: What hypothesis tries where one example takes as long as many of another test.
EXAMPLES = min(1500, max(100, FUZZ // 7))
EVERYTHING = os.environ.get("ONNXSHRINK_ORACLE") == "all"
#: The distance between bits of a sound file that are flipped: every place in a byte has its turn.
BITS = 1 if FUZZ >= 10_000 else 5


def chosen(name: str, share: int = 8) -> bool:
    """Whether a case is one of the share that is tried, by its name."""
    return EVERYTHING or zlib.crc32(name.encode()) % share == 0
