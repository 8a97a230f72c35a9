"""Scores against a number: which series a figure shows can be read from it."""

import pytest

pytest.importorskip("matplotlib")

from goat_jax.plots.scores import scores_figure

POINTS = {8.0: [80.0], 16.0: [85.0, 86.0]}


def test_a_single_series_is_named_in_the_title_and_several_in_a_legend():
    one = scores_figure({"rte": {"goat": POINTS}}, "Score", "rank", "score", doubling=True)
    assert one.get_suptitle() == "Score (goat)" and not one.legends
    panels = {"rte": {"goat": POINTS}, "cola": {"lora": POINTS}}
    two = scores_figure(panels, "Score", "rank", "score", doubling=True)
    assert two.get_suptitle() == "Score"
    assert [text.get_text() for text in two.legends[0].get_texts()] == ["goat", "lora"]
