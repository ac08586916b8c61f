"""What is freed is given back, in a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
from discovery.malloc import return_what_is_freed

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024

if sys.argv[1] == "told":
    return_what_is_freed()
bytearray(8 << 20)  # from this glibc learns to take such blocks from the heap
before = resident_mb()
kept, freed = [], []
for _ in range(64):
    freed.append(bytearray(1 << 20))
    kept.append(bytearray(1000))  # pins the end of the heap
freed.clear()
print(resident_mb() - before)
"""


@pytest.mark.parametrize(("how", "is_returned"), [("told", True), ("untold", False)])
def test_large_blocks_are_returned(how: str, is_returned: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=60, check=True
    )
    assert (int(done.stdout) < 32) is is_returned
