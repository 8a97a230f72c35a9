"""Predictions of a trained run: the evaluation's numbers, in order; files can be continued."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import goat_jax
from goat_jax.cli.main import main
from goat_jax.data.pipeline.images import unlabeled_images
from goat_jax.data.sources.read import read_rows, read_source
from goat_jax.data.tasks import text
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.language import FORMATS, PROMPTS, LanguageTask, row_of_prompt
from goat_jax.data.tasks.registry import files
from goat_jax.errors import UserError
from goat_jax.inference.output_file import write_predictions
from goat_jax.inference.predictions import Predictions
from goat_jax.inference.predictors import PREDICTORS, labeled_rows, predictor_of
from goat_jax.training.task_types import TASK_TYPES


@pytest.fixture(scope="module")
def run(light_finished):
    return goat_jax.load(light_finished[0].out)


@pytest.fixture(scope="module")
def rows(run):
    """The evaluation rows without their labels."""
    found = read_rows(run.config.task.evaluation)
    return [{"sentence": row["sentence"], "id": n} for n, row in enumerate(found)]


@pytest.fixture(scope="module")
def found(run, rows):
    return run.predict(rows)


@pytest.fixture
def unlabeled(rows, tmp_path):
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_predictions_are_those_of_the_evaluation(run, rows, found):
    trained, batches = run.trained, run.trained.rows
    logits = np.zeros((len(rows), 2), np.float32)
    for numbers, batch in zip(batches.plan.rows, batches, strict=True):
        outputs = np.asarray(trained.setup.eval_step(trained.trainable, trained.base, batch)[1])
        logits[numbers[numbers >= 0]] = outputs[numbers >= 0]
    names = np.array(["bad", "good"])
    assert found.labels.tolist() == names[logits.argmax(-1)].tolist()
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(logits), rtol=1e-5, atol=1e-6)
    truth = [names[row["label"]] for row in read_rows(run.config.task.evaluation)]
    assert run.evaluate()["accuracy"] == pytest.approx(np.mean(found.labels == truth))


def test_rows_keep_their_order_and_may_be_plain_texts(run, rows, found):
    texts = [row["sentence"] for row in reversed(rows)]
    again = run.predict(texts)
    assert again.labels.tolist() == found.labels.tolist()[::-1]
    np.testing.assert_allclose(again.probabilities[::-1], found.probabilities, rtol=1e-5, atol=1e-6)
    few = run.predict(texts[:3], batch_size=2)
    np.testing.assert_allclose(few.probabilities, again.probabilities[:3], rtol=1e-5, atol=1e-6)


def test_a_table_is_printed(found):
    lines = repr(found).splitlines()
    assert lines[0].split() == ["sentence", "id", "label", "probability"]
    assert lines[-1] == "... 20 more rows" and len(lines) == 23


def test_a_notebook_shows_the_table():
    rows, shares = [{"text": "<b>warm</b>"}] * 21, np.full((21, 2), 0.5, np.float32)
    found = Predictions(rows, "label", np.array(["good"] * 21), ("bad", "good"), shares)
    shown = found._repr_html_()
    assert shown.startswith("<table><tr><th>text</th><th>label</th><th>probability</th></tr>")
    row = "<tr><td>&lt;b&gt;warm&lt;/b&gt;</td><td>good</td><td>0.5</td></tr>"
    assert shown.count(row) == 20 and shown.endswith("</table>... 1 more rows")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "a list of one row or more"),
        ("one text", "a list of one row or more"),
        ([("a", "b")], "task files reads the columns sentence: give a text for each"),
        ([{"text": "fine"}], r"predict: row 1: no value in column 'sentence' \(the row has text"),
        (["fine", ""], "predict: row 2: empty text"),
    ],
    ids=["none", "text", "pair", "column", "empty"],
)
def test_rows_that_do_not_fit(run, given, message):
    with pytest.raises(UserError, match=message):
        run.predict(given)


def test_each_line_of_plain_text_is_a_text_or_a_prompt(tmp_path):
    path = tmp_path / "new.TXT"
    path.write_text("a warm film\n\na dull one\n")
    for task, column in {
        files("a.csv", "b.csv", labels=("bad", "good")): "sentence",
        LanguageTask("chats", "a.csv", "b.csv", format="prompt_completion"): "prompt",
    }.items():
        rows = predictor_of(task).read(task, [str(path)])
        assert rows == [{column: "a warm film"}, {column: "a dull one"}]


def test_what_the_run_cannot_do(run, found):
    with pytest.raises(UserError, match="is a text encoder: only a language model generates"):
        run.generate("fine")
    with pytest.raises(UserError, match="no values here: the run predicts labels"):
        found.values  # noqa: B018


def test_a_regression_gives_values():
    task = files("a", "b", metrics=("pearson",))
    outputs = np.array([[0.5], [2.0]], np.float32)
    found = predictor_of(task).finish(task, [{"sentence": "a"}, {"sentence": "b"}], outputs)
    assert found.values.tolist() == [0.5, 2.0] and found.results() == [[0.5], [2.0]]
    assert repr(found).splitlines()[0].split() == ["sentence", "value"]


def test_every_task_has_a_predictor():
    assert PREDICTORS.keys() == TASK_TYPES.keys()
    assert PROMPTS.keys() == FORMATS.keys()


@pytest.mark.parametrize("format", ["prompt_completion", "alpaca", "text", "template"])
def test_one_text_is_a_prompt_of_each_format(format):
    prompt, completion = ("Q: {question}\n", "{x}") if format == "template" else ("", "")
    task = LanguageTask("notes", "a", "b", format, prompt, completion)
    assert "2 + 2?" in PROMPTS[format](row_of_prompt(task, "2 + 2?"), task, None)


def test_images_are_found_in_folders_and_encoded_without_labels(tmp_path):
    for name, value in {"b/c/2.png": 20, "a/1.png": 10, "3.png": 30}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / name)
    task = ImageTask("dots", "", "", labels=("a", "b"), mean=(0.0,) * 3, std=(1.0,) * 3)
    sources = [str(tmp_path / "b"), str(tmp_path / "a"), str(tmp_path / "3.png")]
    rows = PREDICTORS[ImageTask].read(task, sources)
    assert [row["image"][-5:] for row in rows] == ["2.png", "1.png", "3.png"]
    batch = unlabeled_images(task, rows, "new", None).gather(np.arange(3), 1)
    seen = batch["pixel_values"][:, 0, 0, 0] * 255
    np.testing.assert_allclose(seen, [20, 10, 30], rtol=1e-5)
    with pytest.raises(UserError, match=r"new: row 1: no\.png: no such file"):
        unlabeled_images(task, [{"image": "no.png"}], "new", None)


def test_a_template_with_two_columns_needs_rows():
    task = LanguageTask("notes", "a", "b", format="template", prompt="{a} {b}", completion="{c}")
    with pytest.raises(UserError, match="its prompt has the columns a, b: give rows with them"):
        row_of_prompt(task, "2 + 2?")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_files_hold_the_rows_and_the_predictions(found, rows, tmp_path, ending):
    out = tmp_path / f"new{ending}"
    write_predictions(out, rows, found.classes, part_of(found), 16, {"input": "a"})
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    back = read_rows(out)
    names = ["sentence", "id", "prediction", "probability_bad", "probability_good"]
    assert [list(row) for row in back] == [names] * len(rows)
    assert [row["prediction"] for row in back] == found.labels.tolist()
    shares = [[float(row[name]) for name in names[3:]] for row in back]
    np.testing.assert_array_equal(np.array(shares, np.float32), found.probabilities)
    assert [int(row["id"]) for row in back] == list(range(len(rows)))


def part_of(found):
    return lambda numbers: dataclasses.replace(
        found,
        predicted=found.predicted[numbers.start : numbers.stop],
        probabilities=found.probabilities[numbers.start : numbers.stop],
    )


ODD = [
    {"text": 'she said "no",\nthen left', "prediction": None},
    {"text": "", "extra": [1, {"a": "é"}]},
    {"text": '"', "probability_a": True},
    {"text": "\r\n\n", "prediction": "mine"},
    {"text": "plain"},
]


def odd_predictions(numbers):
    labels = np.array(["a", "b\n"])[np.array(numbers) % 2]
    shares = np.stack([np.arange(2, dtype=np.float32) + n for n in numbers])
    return Predictions(ODD[numbers.start : numbers.stop], "label", labels, ("a", "b\n"), shares)


def written(out, predict=odd_predictions, identity=None):
    return write_predictions(out, ODD, ("a", "b\n"), predict, 2, identity or {"input": "a"})


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_file_goes_on_from_wherever_it_was_cut(tmp_path, ending):
    out = tmp_path / f"odd{ending}"
    assert written(out) == 0
    whole = out.read_bytes()
    assert [row["text"] for row in read_rows(out)] == [row["text"] for row in ODD]
    asked = []

    def predict(numbers):
        asked.append(numbers)
        return odd_predictions(numbers)

    begun = []
    for length in range(len(whole) + 1):
        out.write_bytes(whole[:length])
        (tmp_path / f"{out.name}.unfinished").write_text('{"input": "a"}')
        asked.clear()
        begun.append(written(out, predict))
        assert out.read_bytes() == whole
        assert asked == [range(n, min(n + 2, 5)) for n in range(begun[-1] // 2 * 2, 5, 2)]
    assert begun == sorted(begun) and set(begun) == set(range(6))


def test_columns_of_the_input_keep_their_names(tmp_path):
    written(tmp_path / "odd.jsonl")
    names = ["text", "prediction", "extra", "probability_a"]
    names += ["prediction_", "probability_a_", "probability_b\n"]
    assert {tuple(row) for row in read_rows(tmp_path / "odd.jsonl")} == {tuple(names)}


def test_only_the_same_predictions_go_on(tmp_path):
    out = tmp_path / "odd.csv"

    def killed(numbers):
        if numbers.start == 2:
            raise KeyboardInterrupt
        return odd_predictions(numbers)

    both = {"input": "a", "checkpoint": "b"}
    with pytest.raises(KeyboardInterrupt):
        written(out, killed, both)
    for name in both:
        with pytest.raises(UserError, match=f"was begun with another {name}: choose another --out"):
            written(out, identity=both | {name: "c"})
    assert written(out, identity=both) == 2
    with pytest.raises(UserError, match="is there already: choose another --out, or remove"):
        written(out, identity=both)


def test_images_are_not_written(tmp_path):
    rows = [{"image": b"PNG", "id": 1}, {"image": np.zeros((2, 2)), "id": 2}]
    found = Predictions(rows, "value", np.ones(2))
    write_predictions(tmp_path / "a.jsonl", rows, (), lambda numbers: found, 2, {})
    assert read_rows(tmp_path / "a.jsonl")[1] == {"id": 2, "prediction": 1.0}


def test_a_file_that_cannot_be_written_so(tmp_path):
    for name, message in {
        "a.txt": "unknown file type: end its name in one of .csv",
        "no/a.csv": "is not a folder",
    }.items():
        with pytest.raises(UserError, match=message):
            written(tmp_path / name)


@pytest.mark.slow
def test_the_verb_writes_a_file_and_goes_on(run, found, unlabeled, tmp_path, capsys):
    out = tmp_path / "new.csv"
    words = ["predict", str(run.folder), "--data", str(unlabeled), "--out", str(out), "--quiet"]
    assert main([*words, "--batch-size", "4"]) == 0
    assert capsys.readouterr().out == f"{out}: 40 rows\n"
    assert [row["prediction"] for row in read_rows(out)] == found.labels.tolist()
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_verb_says_what_is_missing_before_it_loads_weights(run, tmp_path, capsys):
    path = tmp_path / "new.csv"
    path.write_text("text,id\nfine,1\n")
    words = ["predict", str(run.folder), "--data", str(path), "--out", str(tmp_path / "out.csv")]
    assert main(words) == 2
    expected = f"{path}: row 1: no value in column 'sentence' (the row has text, id)"
    assert expected in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["new.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data FILE --out FILE, or --text TEXT: give one of them"),
        (["--data", "a.csv"], "--data and --out go together"),
        (["--text", "a", "--seed", "1"], "--seed is for language models"),
    ],
    ids=["nothing", "out", "seed"],
)
def test_arguments_that_do_not_fit(run, capsys, words, message):
    assert main(["predict", str(run.folder), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_verb_prints_texts(run, rows, found, capsys):
    words = [word for row in rows[:2] for word in ("--text", row["sentence"])]
    assert main(["predict", str(run.folder), *words, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prediction"] for line in lines] == found.labels.tolist()[:2]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_evaluate_writes_each_row_with_its_label(run, found, tmp_path, capsys, ending):
    out = tmp_path / f"scored{ending}"
    words = ["evaluate", str(run.folder), "--out", str(out), "--quiet", "--json"]
    assert main(words) == 0
    scores = json.loads(capsys.readouterr().out)
    rows = read_rows(out)
    names = ["sentence", "label", "expected", "prediction", "probability_bad", "probability_good"]
    assert {tuple(row) for row in rows} == {tuple(names)}
    given = read_rows(run.config.task.evaluation)
    assert [row["sentence"] for row in rows] == [row["sentence"] for row in given]
    assert [row["expected"] for row in rows] == [("bad", "good")[row["label"]] for row in given]
    assert [row["prediction"] for row in rows] == found.labels.tolist()
    share = np.mean([row["prediction"] == row["expected"] for row in rows])
    assert scores["accuracy"] == pytest.approx(share)
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


def test_rows_with_labels_are_read_once(run, monkeypatch):
    reads = []
    monkeypatch.setattr(
        text, "read_source", lambda *given: reads.append(given) or read_source(*given)
    )
    assert labeled_rows(run.config.task)
    assert len(reads) == 1


def test_rows_without_labels_cannot_be_written_with_them():
    with pytest.raises(UserError, match="task notes has no labels to write"):
        labeled_rows(LanguageTask("notes", "a", "b"))
