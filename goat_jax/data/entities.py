"""Entities in sequences of tags, and their F1, as seqeval and CoNLL's evaluation compute them."""

from collections.abc import Iterable, Sequence

Entity = tuple[str, int, int]
"""Type, number of the first word, number of the last one."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """Finds the entities in a row of BIO (or BIOES) tags.

    As in CoNLL's evaluation a tag I- after another type, or after O, begins an entity.

    >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [('LOC', 3, 3), ('LOC', 4, 4), ('PER', 0, 1)]
    """
    found: list[Entity] = []
    inside, before = False, ""
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        kind = kind or "_"
        if inside and prefix in ("I", "E") and kind == before:
            found[-1] = (kind, found[-1][1], place)
        elif prefix != "O":
            found.append((kind, place, place))
        inside, before = prefix not in ("O", "E", "S"), kind
    return set(found)


def entity_scores(
    predicted: Iterable[Sequence[str]], true: Iterable[Sequence[str]]
) -> dict[str, float]:
    """Returns precision, recall and F1 of the entities of all rows together; 0 without entities.

    An entity counts if its type and both its ends are right.

    >>> entity_scores([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "O"]])
    {'entity_precision': 0.5, 'entity_recall': 1.0, 'entity_f1': 0.6666666666666666}
    """
    hits = guessed = real = 0
    for one, other in zip(predicted, true, strict=True):
        ours, theirs = entities(one), entities(other)
        hits, guessed, real = hits + len(ours & theirs), guessed + len(ours), real + len(theirs)
    return {
        "entity_precision": hits / guessed if guessed else 0.0,
        "entity_recall": hits / real if real else 0.0,
        "entity_f1": 2 * hits / (guessed + real) if hits else 0.0,
    }
