"""Matching of module names by targets."""

from goat_jax.injection.targets import ALL_LINEAR, matches, trains


def test_all_linear_is_every_name():
    assert matches("anything.at.all", ALL_LINEAR)


def test_suffixes_match_whole_parts_of_a_name():
    assert matches("a.query", ["query"]) and matches("query", ["query"])
    assert not matches("a.subquery", ["query"]) and not matches("query.a", ["query"])
    assert not matches("a.query.b", r".*query"), "a regular expression must match all of it"
    assert trains("classifier.dense", ["classifier"]) and not trains(
        "my_classifier", ["classifier"]
    )
    assert not trains("a.dense", ["classifier"]) and not trains("a.dense", ())
