"""What the fuzzer has found worth keeping, without atheris."""

from pathlib import Path

from tests.fuzz.target import check

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


def test_all_that_the_fuzzer_kept() -> None:
    files = sorted(CORPUS.iterdir())
    assert len(files) > 20
    for file in files:
        check(None, file.read_bytes())
