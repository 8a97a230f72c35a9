"""The pictures show what the records say, and nothing in them overlaps."""

import struct

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import TwoSlopeNorm
from matplotlib.text import Text

from goat_jax.errors import UserError
from goat_jax.plots import plot_expert_load, plot_training
from goat_jax.plots.compare import comparison_figure
from goat_jax.plots.curves import Panel, curves_figure
from goat_jax.plots.expert_load import expert_load_figure
from goat_jax.plots.style import short_names
from goat_jax.plots.sweep import sweep_figure
from goat_jax.plots.training import training_figure
from kinds import expect, present

BERT = [
    f"bert.encoder.layer.{{}}.{name}"
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]
LLAMA = [f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkvo"] + [
    f"model.layers.{{}}.mlp.{x}_proj" for x in ("gate", "up", "down")
]


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def training_records(steps, eval_every=None, splits=("validation",)):
    records = []
    for step in range(1, steps + 1):
        loss = 1.0 / step
        records.append({"kind": "train", "step": step, "loss": loss + 9, "task_loss": loss})
        if eval_every and step % eval_every == 0:
            for split in splits:
                scores = {"accuracy": 1 - loss, "f1": 0.9 - loss, "perplexity": 3.0, "seconds": 0.5}
                where = {"kind": "eval", "step": step, "split": split}
                records.append(where | {"loss": loss} | scores)
    return records


def load_record(names, layers, experts):
    rows = np.random.default_rng(0).dirichlet(np.full(experts, 4.0), size=layers)
    return {"kind": "load", "step": 1200, "modules": {name: rows.tolist() for name in names}}


def drawn_texts(figure):
    """{text: its box} of all texts that are drawn: figures hold ticks and axes that are not."""
    boxes = {}
    draw = Text.draw

    def record(text, renderer):
        draw(text, renderer)
        if text.get_text() and text.get_visible():
            boxes[text] = text.get_window_extent(renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        figure.draw_without_rendering()
    return boxes


def assert_texts_apart(figure):
    """No text lies over another, and none is cut off by the edge of the figure."""
    drawn = drawn_texts(figure)
    names = [text.get_text() for text in drawn]
    assert len(names) > 5
    x0, y0, x1, y1 = np.array([box.extents for box in drawn.values()]).T
    page = figure.bbox
    outside = (x0 < page.x0 - 1) | (x1 > page.x1 + 1) | (y0 < page.y0 - 1) | (y1 > page.y1 + 1)
    assert not outside.any(), f"cut off: {[names[i] for i in np.flatnonzero(outside)]}"
    over_x = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0)
    over_y = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0)
    pairs = np.argwhere(np.triu((over_x > 1) & (over_y > 1), k=1))
    assert not len(pairs), f"overlapping: {[(names[i], names[j]) for i, j in pairs]}"


def heights(line):
    return np.asarray(line.get_ydata())


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_training_png_is_written_whole(tmp_path):
    plot_training(training_records(30, 10), tmp_path / "new" / "run.png")
    assert png_size(tmp_path / "new" / "run.png") == (1500, 1050)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.png"]


def test_training_panels_say_what_they_show():
    figure = training_figure(training_records(200, 50), "goat on rte")
    assert figure.get_suptitle() == "goat on rte"
    loss, metrics = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Loss", "Evaluation metrics"]
    assert (loss.get_ylabel(), metrics.get_ylabel()) == ("mean loss", "metric (1 is perfect)")
    assert metrics.get_xlabel() == "step (optimizer updates)"
    assert labels(loss) == ["training (task loss)", "training, mean of 11 records", "validation"]
    assert labels(metrics) == [
        "validation accuracy\nlast 0.995, best 0.995 at step 200",
        "validation f1\nlast 0.895, best 0.895 at step 200",
    ]


def test_training_loss_is_the_tasks_part_where_there_is_one():
    raw = training_figure(training_records(10), "x").axes[0].lines[0]
    np.testing.assert_allclose(heights(raw), 1 / np.arange(1, 11))
    only_total = [{"kind": "train", "step": 1, "loss": 5.0}]
    ax = training_figure(only_total, "x").axes[0]
    assert labels(ax) == ["training"] and list(heights(ax.lines[0])) == [5.0]


def test_smoothing_is_a_centred_mean():
    smooth = heights(training_figure(training_records(200), "x").axes[0].lines[1])
    losses = 1 / np.arange(1, 201)
    assert smooth[100] == pytest.approx(losses[95:106].mean())
    assert smooth[0] == pytest.approx(losses[:6].mean())
    assert smooth[-1] == pytest.approx(losses[-6:].mean())


def test_the_best_value_is_told_from_the_last():
    scores = [(10, 0.5), (20, 0.875), (30, 0.75)]
    records = [{"kind": "eval", "step": s, "split": "test", "accuracy": a} for s, a in scores]
    (ax,) = training_figure(records, "x").axes  # no losses, no panel for them
    assert labels(ax) == ["test accuracy\nlast 0.750, best 0.875 at step 20"]
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_offsets()), [[20, 0.875]])


def test_no_metrics_no_second_panel():
    assert len(training_figure(training_records(50), "x").axes) == 1
    assert_texts_apart(training_figure(training_records(50), "x"))


def test_negative_metrics_are_in_the_picture():
    record = {"kind": "eval", "step": 1, "split": "test", "matthews": -0.25}
    assert training_figure([record], "x").axes[0].get_ylim()[0] < -0.25


def test_losses_that_are_not_finite_are_marked():
    records = training_records(100)
    for record in records[60:]:
        record["task_loss"] = None
    ax = training_figure(records, "x").axes[0]
    assert "not finite: 40 records,\nfirst at step 61" in labels(ax)
    assert np.isnan(heights(ax.lines[1])[60:]).all()


def test_a_step_written_twice_counts_once():
    records = [{"kind": "train", "step": 1, "loss": loss} for loss in (1.0, 2.0)]
    assert list(heights(training_figure(records, "x").axes[0].lines[0])) == [2.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "records",
    [
        training_records(3, 3),
        training_records(1),
        training_records(600, 600),
        training_records(1500, 100, ("validation_matched", "validation_mismatched")),
    ],
)
def test_no_text_overlaps_in_training_pictures(records):
    assert_texts_apart(training_figure(records, "a title of some words " * 9))


@pytest.mark.slow
def test_load_png_is_written_whole(tmp_path):
    records = [load_record(BERT, 2, 4) | {"step": 1}, load_record(BERT, 6, 8)]
    plot_expert_load(records, tmp_path / "load.png")
    assert png_size(tmp_path / "load.png") == (1614, 795)
    assert [path.name for path in tmp_path.iterdir()] == ["load.png"]


def test_load_panels_say_what_they_show():
    figure = expert_load_figure(load_record(BERT, 6, 8), "Expert load")
    assert figure.get_suptitle().splitlines() == [
        "Expert load at step 1,200",
        "% of tokens; even share 12.5 %; 0 of 288 experts below a tenth of it",
    ]
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("expert", "layer")
    panels = [ax.get_title() for ax in figure.axes[:6]]
    assert panels[:3] == ["query", "key", "value"]
    assert panels[3:] == ["attention.output.dense", "intermediate.dense", "output.dense"]
    assert figure.axes[6].get_ylabel() == "share / even share (1/E)"


def test_load_colours_are_the_share_against_the_even_one_and_cells_the_percents():
    modules = {"a.{}.q": [[0.25, 0.75], [0.5, 0.5]], "a.{}.v": [[0.04, 0.96], [0.5, 0.5]]}
    figure = expert_load_figure({"kind": "load", "step": 1, "modules": modules}, "x")
    query, value = figure.axes[:2]
    np.testing.assert_allclose(present(query.images[0].get_array()), [[0.5, 1.5], [1.0, 1.0]])
    assert expect(TwoSlopeNorm, query.images[0].norm).vcenter == 1
    assert query.images[0].get_clim() == value.images[0].get_clim() == (0, 2)
    assert [text.get_text() for text in query.texts] == ["25", "75", "50", "50"]
    assert "1 of 8 experts below" in figure.get_suptitle()


def test_layers_without_the_module_or_with_fewer_experts_are_grey():
    modules = {"a.{}.q": [[0.5, 0.5], [0.1, 0.2, 0.3, 0.4]], "a.{}.v": [[], [None, None]]}
    figure = expert_load_figure({"kind": "load", "step": 1, "modules": modules}, "x")
    query, value = (present(ax.images[0].get_array()) for ax in figure.axes[:2])
    np.testing.assert_allclose(np.ma.filled(query, -1), [[1, 1, -1, -1], [0.4, 0.8, 1.2, 1.6]])
    assert np.ma.getmaskarray(value).all()
    assert "even share 1/E" in figure.get_suptitle()


LARGE = [(BERT, 6, 8, True), (LLAMA, 32, 8, True)]
"""Pictures with many texts, all pairs of which are looked at."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "layers", "experts", "numbers"),
    [
        (BERT[:1], 1, 2, True),
        (BERT[:3], 6, 2, True),
        (BERT[:2], 12, 32, False),
        (LLAMA, 80, 8, False),
    ]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in LARGE],
)
def test_no_text_overlaps_in_load_pictures(names, layers, experts, numbers):
    figure = expert_load_figure(load_record(names, layers, experts), "goat on rte: expert load")
    assert bool(figure.axes[0].texts) == numbers
    assert max(figure.get_size_inches()) <= 17
    assert_texts_apart(figure)


def test_modules_of_two_towers_keep_their_names():
    names = [f"{tower}.layers.{{}}.q_proj" for tower in ("vision", "text")]
    assert short_names(names) == ["vision.layers\nq_proj", "text.layers\nq_proj"]


def test_what_cannot_be_drawn_is_one_line_with_the_fix(tmp_path):
    with pytest.raises(UserError, match="no train or eval records"):
        plot_training([], tmp_path / "x.png")
    with pytest.raises(UserError, match="no load records"):
        plot_expert_load(training_records(3), tmp_path / "x.png")
    with pytest.raises(UserError, match="has no shares"):
        plot_expert_load({"kind": "load", "step": 1, "modules": {}}, tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x.jpg: end the name in .png"):
        plot_training(training_records(3), tmp_path / "x.jpg")
    assert list(tmp_path.iterdir()) == []


def test_sweep_bars_are_the_deviation_and_no_label_lies_over_another():
    rates = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3]
    words = ["all-linear", ".*self_attn.*", "query and value projections only"]
    points = [(rate, word) for rate in rates for word in words]
    scores = [[0.5, 0.6, 0.7] for _ in points]
    scores[1] = []
    axes = {
        "optimizer.learning_rate": [rate for rate, _ in points],
        "adapter.target_modules": [word for _, word in points],
        "drawn": [0.01 + number**2 for number in range(len(points))],
    }
    figure = sweep_figure(axes, scores, "demo", "accuracy", {"optimizer.learning_rate"})
    assert_texts_apart(figure)
    low, high = figure.axes[0].containers[0][2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.5, 0.7))  # one sample deviation, 0.1, on either side
    (lost,) = [each for each in figure.axes[0].collections if isinstance(each, PathCollection)]
    assert np.asarray(lost.get_offsets())[0][0] == rates[0]


def test_comparison_panels_have_a_mean_each_and_mark_what_diverged():
    losses = {
        "goat": [[1.0, 0.5, 0.2], [1.0, 0.7, 0.4]],
        "adalora:total_rank=12,target_rank=8": [[1.0, 9e9], [1.0, 0.9, 0.8]],
        "lora": [[1.0], [1.0, 2.0]],
    }
    figure = comparison_figure(losses, "demo", 3)
    assert_texts_apart(figure)
    headings = [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]
    assert headings[0] == "goat: 0.300 at the end"
    assert headings[1].endswith("0.800 at the end\n1 of 2 runs diverged")
    assert headings[2] == "lora\n2 of 2 runs diverged"
    assert figure.axes[0].get_ylim()[1] < 1.1


def test_a_bounded_panel_begins_at_zero_and_shows_its_bound():
    panel = Panel("routers", "nats", {"entropy": [([1, 2], [2.05, 2.06])]}, bounds={"ln 8": 2.079})
    (ax,) = curves_figure([[panel]], "Entropy", False).axes
    assert ax.get_ylim() == pytest.approx((0, 1.08 * 2.079)) and labels(ax) == ["entropy", "ln 8"]
    assert list(heights(ax.lines[-1])) == [2.079, 2.079]
