"""Feeds mutated messages to all that reads them, for a minute: `tox -e fuzz`, or

    python -m tests.fuzz.fuzz_dns [SECONDS [CORPUS]]

New ways through the code are kept as files in CORPUS (default tests/fuzz/corpus), to be committed; every
file there is also a unit test. What breaks is written to the working directory as crash-….
"""

import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 60
MOST_BYTES = 1024


def main() -> int:
    seconds = sys.argv[1] if len(sys.argv) > 1 else str(SECONDS)
    corpus = sys.argv[2] if len(sys.argv) > 2 else str(CORPUS)
    flags = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", "-timeout=5", "-print_final_stats=1"]
    # libFuzzer ends its process when it is done.
    return subprocess.call([sys.executable, "-m", "tests.fuzz.fuzz_dns", "--here", *flags, corpus])


def here() -> None:
    import atheris

    with atheris.instrument_imports(include=["discovery.dns"]):
        from tests.fuzz.target import check

    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: check(None, data))
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        here()
    sys.exit(main())
