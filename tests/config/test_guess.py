"""A config from a model and data alone: columns, classes, formats, the held-out part."""

import csv
import json
from typing import Any

import pytest

import goat_jax
from goat_jax.cli.arguments.config import propose_config
from goat_jax.cli.main import main
from goat_jax.config import guess as guess_module
from goat_jax.config.files import load_config
from goat_jax.config.guess import config_for
from goat_jax.data.pipeline.images import load_images
from goat_jax.data.tasks.guess import Data, guess_images, guess_language, guess_text
from goat_jax.data.tasks.text import load_examples
from goat_jax.errors import UserError
from goat_jax.training import from_data
from tiny_run import write_checkpoint, write_rows

WORDS = ["fine", "bright", "warm", "sharp", "lovely", "dull", "flat", "cold", "weak", "muddled"]


def table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tones(path, count=60):
    """Three classes, odd names of columns, commas and quotes inside the text."""
    rows = [
        [n, f'a "{WORDS[n % 10]}" film, number {n}, well', ("good", "bad", "fine")[n % 3]]
        for n in range(count)
    ]
    return table(path, ["review_id", "Review Text", "Overall Sentiment"], rows)


def text_of(source, held_out=None, **given):
    return guess_text(Data(source, held_out, given))


def test_columns_are_found_by_words_in_their_names(tmp_path):
    guess = text_of(tones(tmp_path / "My reviews.csv"))
    task = guess.task
    assert (task.text, task.label) == (("Review Text",), "Overall Sentiment")
    assert task.labels == ("bad", "fine", "good")
    assert task.metrics == ("accuracy",)  # F1 is for two classes
    assert (task.name, guess.rows, task.held_out) == ("My-reviews", 54, 6)
    assert guess.lines[1] == (
        "label column: Overall Sentiment (3 classes: bad, fine, good); "
        "say otherwise with --task.label"
    )


def test_the_lines_name_what_is_given(tmp_path):
    write_checkpoint(tmp_path / "model")
    words = ["--out", "elsewhere", "--train.max-length", "24"]
    data = tones(tmp_path / "tones.csv")
    *_, loop, method = propose_config(str(tmp_path / "model"), data, None, words, "p").lines
    assert "at most 24 tokens" in loop and "in elsewhere;" in method


def test_a_regression_has_no_classes_to_share(tmp_path):
    rows = [[WORDS[n % 10], n / 7] for n in range(40)]
    held = text_of(table(tmp_path / "beers.csv", ["Notes", "Score /100"], rows)).lines[2]
    assert "4 of 40 rows, evenly spaced by value" in held


def test_the_only_column_of_numbers_is_the_label_of_a_regression(tmp_path):
    rows = [[100 + n, WORDS[n % 10] + f" house {n}", n * 1.37] for n in range(40)]
    task = text_of(table(tmp_path / "homes.csv", ["number", "words", "price"], rows)).task
    assert (task.text, task.label, task.labels) == (("words",), "price", ())
    two = [[*row[1:], n * 2.5] for n, row in enumerate(rows)]
    with pytest.raises(UserError, match="no column looks like a label"):
        text_of(table(tmp_path / "two.csv", ["words", "price", "size"], two))


def test_a_class_name_with_a_comma_is_quoted(tmp_path):
    rows = [[WORDS[n % 10], ("good", "bad, or worse")[n % 2]] for n in range(20)]
    line = text_of(table(tmp_path / "tones.csv", ["text", "label"], rows)).lines[1]
    assert '(2 classes: "bad, or worse", good)' in line


def test_the_held_out_part_is_stratified_and_depends_on_the_texts_alone(tmp_path):
    source = tones(tmp_path / "tones.csv")
    task = text_of(source).task
    parts = {split: load_examples(task, split) for split in ("train", "evaluation")}
    assert sorted(parts["evaluation"].labels.tolist()) == [0, 0, 1, 1, 2, 2]
    texts = {split: set(part.texts[0]) for split, part in parts.items()}
    assert not texts["train"] & texts["evaluation"]
    assert len(texts["train"]) == 54
    lines = (tmp_path / "tones.csv").read_text().splitlines()
    (tmp_path / "tones.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    assert set(load_examples(task, "evaluation").texts[0]) == texts["evaluation"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["1", "10", "2"], ("1", "2", "10")),
        (["1.0", "0.0"], ("0.0", "1.0")),
        ([True, False], ("False", "True")),
        (["b", "c", "a"], ("a", "b", "c")),
        (list(range(30)), ()),
        ([0.5, 1.25, 3.0], ()),
    ],
)
def test_labels_in_order_and_numbers_as_a_regression(tmp_path, values, labels):
    rows = [{"text": f"film {n}", "score": values[n % len(values)]} for n in range(60)]
    task = text_of(jsonl(tmp_path / "a.jsonl", rows)).task
    assert task.labels == labels
    assert task.metrics[0] == ("accuracy" if labels else "pearson")


def test_columns_without_telling_names_are_looked_at(tmp_path):
    rows = [[n, f"the film is number {n}", f"by {n}", "yn"[n % 2]] for n in range(20)]
    task = text_of(table(tmp_path / "a.csv", ["id", "a", "b", "c"], rows)).task
    assert (task.text, task.label, task.labels) == (("a",), "c", ("n", "y"))


def test_pairs(tmp_path):
    rows = [[f"p {n}", f"h {n}", n % 2] for n in range(8)]
    task = text_of(table(tmp_path / "a.tsv.csv", ["premise", "hypothesis", "label"], rows)).task
    assert task.text == ("premise", "hypothesis")


def test_a_choice_of_the_user_decides(tmp_path):
    rows = [[f"film {n}", n % 2, n % 3] for n in range(20)]
    source = table(tmp_path / "a.csv", ["text", "label", "stars"], rows)
    task = text_of(source, "held.csv", label="stars").task
    assert (task.label, task.labels) == ("stars", ("0", "1", "2"))
    assert (task.evaluation, task.held_out) == ("held.csv", 0)


@pytest.mark.parametrize(
    ("header", "rows", "given", "message"),
    [
        (["text", "when"], [[f"f {n}", n] for n in range(9)], {}, "no column looks like a label"),
        (["label", "n"], [[n % 2, n] for n in range(9)], {}, "no column looks like text"),
        (["text", "label"], [["a film", "x"]] * 3, {}, "column 'label' has 1 value"),
        (
            ["text", "label"],
            [[f"f {n}", f"v{n}"] for n in range(50)],
            {},
            "50 different values .* 'v0' is",
        ),
        (["text", "score"], [[f"f {n}", n / 7 if n else "n/a"] for n in range(50)], {}, "'n/a' is"),
        (["text", "label"], [["a", 1], ["b", ""], ["c", 2]], {}, "1 of 3 rows .* row 2 first"),
        (["text", "label"], [["a", 1], ["b", 2]], {"label": "lable"}, "did you mean 'label'"),
    ],
)
def test_what_cannot_be_found_is_one_line(tmp_path, header, rows, given, message):
    with pytest.raises(UserError, match=message) as error:
        text_of(table(tmp_path / "a.csv", header, rows), **given)
    assert "\n" not in str(error.value)
    assert "a.csv" in str(error.value)


CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
]


@pytest.mark.parametrize(
    ("row", "format", "completion"),
    [
        ({"id": 1, "messages": CHAT}, "messages", ""),
        ({"conversations": [{"from": "human", "value": "?"}]}, "messages", ""),
        ({"prompt": "2 + 2 =", "completion": " 4"}, "prompt_completion", ""),
        ({"instruction": "Add.", "input": "", "output": "4"}, "alpaca", ""),
        ({"text": "a film", "label": 1}, "text", ""),
        ({"question": "2 + 2?", "answer": "4"}, "template", "{answer}"),
        ({"Question": "2 + 2?", "Answer": "4", "source": "web"}, "template", "{Answer}"),
        ({"id": 3, "story": "once upon a time"}, "template", "{story}"),
    ],
)
def test_formats_of_language_data(tmp_path, row, format, completion):
    guess = guess_language(Data(jsonl(tmp_path / "a.jsonl", [row] * 30), None, {}))
    assert (guess.task.format, guess.task.completion) == (format, completion)
    assert (guess.rows, guess.task.held_out) == (27, 3)


def write_images(folder, count):
    from PIL import Image

    for name in ("dog", "cat"):
        for n in range(count):
            path = folder / name / ("deep" if n % 2 else "") / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (n, 0, 0)).save(path)
    return folder


def test_classes_from_folders_and_a_held_out_part_of_each(tmp_path):
    guess = guess_images(Data(str(write_images(tmp_path / "photos", 10)), None, {}))
    assert (guess.task.labels, guess.task.name, guess.rows) == (("cat", "dog"), "photos", 18)
    assert sorted(load_images(guess.task, "evaluation").labels.tolist()) == [0, 1]
    assert len(load_images(guess.task, "train")) == 18
    (tmp_path / "all").mkdir()
    (tmp_path / "photos").rename(tmp_path / "all" / "photos")
    with pytest.raises(UserError, match=r"all: all images are in the subfolder 'photos': .*photos"):
        guess_images(Data(str(tmp_path / "all"), None, {}))


def test_folders_of_splits_and_a_table_of_images(tmp_path):
    for name in ("train", "val"):
        write_images(tmp_path / "photos" / name, 3)
    task = guess_images(Data(str(tmp_path / "photos"), None, {})).task
    assert (task.name, task.held_out) == ("photos", 0)
    assert len(load_images(task, "evaluation")) == 6
    rows = [[f"photos/train/{name}/0.png", name] for name in ("cat", "dog")] * 3
    source = table(tmp_path / "photos.csv", ["file", "animal"], rows)
    task = guess_images(Data(source, None, {})).task
    assert (task.image, task.label, task.labels) == ("file", "animal", ("cat", "dog"))
    assert len(load_images(task, "train")) == 5


def test_settings_of_each_kind_of_model(tmp_path):
    source = tones(tmp_path / "tones.csv")
    config = config_for("FacebookAI/roberta-base", source)
    assert (config.adapter.method, config.adapter.total_rank) == ("goat", 32)
    assert config.adapter.modules_to_save == ("classifier.dense", "classifier.out_proj")
    assert (config.train.batch_size, config.train.epochs) == (8, 3.0)  # 54 rows
    assert config.out == "runs/tones"
    config = config_for(
        "roberta-base", source, **{"train.steps": 6, "train.batch_size": 10, "adapter.rho": 5.0}
    )
    assert (config.train.steps, config.train.epochs, config.adapter.rho) == (6, None, 5.0)
    source = jsonl(tmp_path / "chats.jsonl", [{"messages": CHAT}] * 200)
    config = config_for("meta-llama/Llama-2-7b-hf", source)
    assert (config.model.dtype, config.model.remat) == ("bfloat16", "full")
    assert config.adapter.modules_to_save == ()


@pytest.mark.parametrize(("memory", "parts"), [(8, 16), (24, 4), (80, 1)])
def test_memory_decides_the_parts_of_a_batch_and_not_its_size(memory, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(guess_module, "device_memory", lambda: memory * 2**30)
    row = {"messages": [{"role": "user", "content": "why? " * 700}, CHAT[-1]]}
    source = jsonl(tmp_path / "chats.jsonl", [row] * 200)
    train = config_for("meta-llama/Llama-2-7b-hf", source).train
    assert (train.batch_size, train.max_length, train.grad_accum_steps) == (16, 1024, parts)


def test_init_writes_the_config_that_train_would_run(tmp_path, capsys):
    source, file = tones(tmp_path / "tones.csv"), tmp_path / "to make" / "my_run.py"
    fields = ["--train.seed", "3", "--adapter.rho", "5"]
    assert main(["init", str(file), "--model", "roberta-base", "--data", source, *fields]) == 0
    assert "3 classes: bad, fine, good" in capsys.readouterr().out
    expected = config_for("roberta-base", source, **{"train.seed": 3, "adapter.rho": 5.0})
    assert load_config(str(file)) == expected
    assert "# the number of passes over the training rows" in file.read_text()
    assert main(["init", str(file), "--model", "roberta-base", "--data", source]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of them"),
        (["--model", "roberta-base"], "go together"),
        (["--config", "a.py", "--data", "a.csv"], "give one of them"),
        (["--config", "a.py", "--held-out", "b.csv"], "needs --model and --data"),
    ],
)
def test_origins_that_do_not_go_together(words, message, capsys):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_three_steps_from_a_table_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(write_checkpoint(tmp_path / "model"))
    rows = write_rows(tmp_path / "rows.jsonl", 60, seed=1)
    words = ["--train.steps", "3", "--train.num-buckets", "1", "--train.eval-every", "3"]
    words += ["--train.save-every", "3", "--adapter.target-modules", ".*query"]
    assert main(["train", "--model", model, "--data", str(rows), "--quiet", *words]) == 0
    out = capsys.readouterr().out
    assert "label column: label (2 classes: 0, 1)" in out
    assert "lengths  " in out and "tokens (median) to" in out
    assert "folder   runs/rows\n" in out
    assert out.index("parameters (") < out.index("finished at step 3")
    assert "finished at step 3" in out


def test_python_trains_what_the_command_line_would(tmp_path, monkeypatch, capsys):
    source, trained = tones(tmp_path / "tones.csv"), []
    monkeypatch.setattr(from_data, "fit", lambda config, **others: trained.append(config))
    fields: dict[str, Any] = {"train.seed": 3}
    goat_jax.train("roberta-base", source, epochs=2, **fields)
    fields["train.epochs"] = 2
    assert trained == [config_for("roberta-base", source, **fields)]
    assert "3 classes: bad, fine, good" in capsys.readouterr().out


def test_pooling_is_that_of_the_checkpoint(tmp_path):
    source, model = tones(tmp_path / "tones.csv"), write_checkpoint(tmp_path / "model")
    assert config_for(str(model), source).model.options == {}
    entries = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
    (model / "modules.json").write_text(json.dumps(entries))
    (model / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    assert config_for(str(model), source).model.options == {"pooling": "mean"}
    fields: dict[str, Any] = {"model.options": {"pooling": "cls"}}
    other = config_for(str(model), source, **fields)
    assert other.model.options == {"pooling": "cls"}


def test_a_proposal_reads_no_weights(tmp_path, monkeypatch):
    model = write_checkpoint(tmp_path / "model")
    (model / "model.safetensors").unlink()
    fetched = []

    def find(name, files):
        fetched.append((name, files))
        return model

    monkeypatch.setattr(guess_module, "find_model", find)
    config = config_for("somebody/encoder", tones(tmp_path / "tones.csv"))
    assert config.model.path == "somebody/encoder"
    assert fetched == [("somebody/encoder", ("*.json", "*.model", "*.txt", "*.jinja"))]
