"""Rows as people have them: values that are not texts are refused with file, row and column, never
trained on as Python prints them, and files with odd but valid content are read."""

import gzip
import json

import numpy as np
import pytest

from goat_jax.data.pipeline.packing import load_texts
from goat_jax.data.sources.formats import read_csv, read_json, read_jsonl, read_tsv
from goat_jax.data.sources.read import _plain, read_rows
from goat_jax.data.tasks.columns import read_label
from goat_jax.data.tasks.formats.commonsense import instructed
from goat_jax.data.tasks.language import LanguageTask, load_pieces
from goat_jax.data.tasks.text import TextTask, load_examples
from goat_jax.errors import UserError
from tiny_tokenizers import make_tokenizer

NO_TEXT = {
    "null": None,
    "nan": float("nan"),
    "number": 1.5,
    "whole": 3,
    "bool": True,
    "list": ["a"],
    "object": {"a": 1},
    "surrogate": "a\ud800b",
}
FIELDS = {
    "prompt": ("prompt_completion", {"completion": "4"}),
    "completion": ("prompt_completion", {"prompt": "2 + 2"}),
    "text": ("text", {}),
    "instruction": ("alpaca", {"output": "4"}),
    "input": ("alpaca", {"instruction": "add", "output": "4"}),
    "output": ("alpaca", {"instruction": "add"}),
    "q": ("template", {"a": "4"}),
    "a": ("template", {"q": "2 + 2"}),
}
USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("byte_level", "chatml")


@pytest.fixture
def task_of(tmp_path):
    def task_of(*rows, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return LanguageTask("notes", str(path), str(path), **options)

    return task_of


@pytest.mark.parametrize("kind", NO_TEXT)
@pytest.mark.parametrize("column", FIELDS)
def test_what_is_no_text_is_refused_with_its_row_and_column(kind, column, task_of, tokenizer):
    format, others = FIELDS[column]
    good = others | {column: "fine"}
    options = {"prompt": "{q}", "completion": "{a}"} if format == "template" else {}
    task = task_of(good, good | {column: NO_TEXT[kind]}, format=format, **options)
    if (kind, column) == ("null", "input"):  # no input is what it means
        assert "Input" not in load_pieces(task, "train", tokenizer)[1].pieces[0].text
    elif (kind, format) == ("whole", "template"):  # one spelling
        assert load_pieces(task, "train", tokenizer)[1].pieces[column == "a"].text == "3"
    else:
        with pytest.raises(UserError) as caught:
            load_pieces(task, "train", tokenizer)
        assert "rows.jsonl: row 2: " in str(caught.value) and column in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("template", ["{q[0]}", "{q.__class__}", "{q!r:>9}", "{0}", "{", "{}"])
def test_a_template_gives_text_or_is_refused(template, task_of, tokenizer):
    task = task_of({"q": ["a", 1.5]}, format="template", prompt=template, completion="{q[0]}")
    if template == "{q[0]}":
        assert load_pieces(task, "train", tokenizer)[0].pieces[0].text == "a"
    else:
        with pytest.raises(UserError, match=r"rows.jsonl: row 1: "):
            load_pieces(task, "train", tokenizer)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("not JSON", "column 'messages' is not valid JSON"),
        ("3", "no list in column 'messages': it holds 3"),
        ("[" * 100_000, "nested too deep"),
        ([], "no list in column 'messages'"),
        ({"role": "user"}, "no list in column 'messages'"),
        (["a", "b"], "message 1 is 'a': give an object with role and content"),
        ([USER], "no message of the assistant"),
        ([USER, {"role": "assistant"}], "content of message 2 holds null, not text"),
        ([USER, {"role": "assistant", "content": None}], "content of message 2 holds null"),
        ([USER, {"role": "assistant", "content": float("nan")}], "message 2 holds nan"),
        ([USER, {"role": "assistant", "content": "\udfff"}], "message 2 holds half of a"),
        ([{"role": "user", "content": [IMAGE]}, BOT], "part 1 of message 1 is {'image_url'"),
        ([{"role": "user", "content": ["a"]}, BOT], "part 1 of message 1 is 'a'"),
        ([{"role": "user", "content": [{"type": "text"}]}, BOT], "text of part 1 of message 1"),
        ([{"content": "a"}, BOT], "role of message 1 holds null"),
        ([USER, BOT | {"weight": 0.5}], "weight of message 2 is 0.5: give 1"),
        ([USER, BOT | {"weight": True}], "weight of message 2 is true"),
        ([USER, BOT | {"weight": "0"}], "weight of message 2 is '0'"),
    ],
    ids=range(18),
)
def test_messages_that_are_none_are_refused(messages, says, task_of, tokenizer):
    with pytest.raises(UserError) as caught:
        load_pieces(task_of({"messages": messages}, format="messages"), "train", tokenizer)
    assert "row 1: " in str(caught.value) and says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("tools", ["not JSON", 3, ["add"], {"name": "add"}])
def test_tools_that_are_none_are_refused(tools, task_of, tokenizer):
    task = task_of({"messages": [USER, BOT], "tools": tools}, format="messages")
    with pytest.raises(UserError, match="row 1: column 'tools'"):
        load_pieces(task, "train", tokenizer)


def test_tools_that_the_template_would_leave_out_are_refused(task_of):
    task = task_of({"messages": [USER, BOT], "tools": [{"name": "add"}]}, format="messages")
    with pytest.raises(UserError, match="row 1: the chat template has no place for tools"):
        load_pieces(task, "train", make_tokenizer("byte_level", "llama_3"))


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"text": ""}, {"format": "text"}),
        ({"prompt": "", "completion": ""}, {}),
        ({"prompt": "a", "completion": ""}, {}),
        ({"messages": [USER, BOT | {"weight": 0}]}, {"format": "messages"}),
    ],
    ids=["text", "both", "completion", "weight"],
)
def test_rows_with_nothing_to_learn_are_left_out_and_counted(row, options, task_of, tokenizer):
    other = {"prompt": "a", "completion": "b", "text": "ab", "messages": [USER, BOT]}
    texts = load_texts(task_of(row, other, **options), "train", tokenizer, 100)
    assert (len(texts.input_ids), texts.dropped) == (1, 1)
    with pytest.raises(UserError, match="none of the 1 train texts has a token to train on"):
        load_texts(task_of(row, **options), "train", tokenizer, 100)


def test_deep_json_and_numbers_of_very_many_digits_are_one_line(tmp_path):
    deep = '{"a": ' + "[" * 100_000
    for name, text, says in [
        ("deep.jsonl", '{"a": 1}\n' + deep, "deep.jsonl:2: JSON nested too deep"),
        ("deep.json", deep, "deep.json: JSON nested too deep"),
        ("long.jsonl", '{"a": ' + "1" * 5000 + "}", "long.jsonl:1: JSON cannot be read"),
        ("long.json", '[{"a": ' + "1" * 5000 + "}]", "long.json: JSON cannot be read"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=says):
            read_rows(tmp_path / name)


def test_long_cells_line_ends_marks_and_blank_lines_are_read(tmp_path):
    long = "a, " * 100_000
    for name, content, read, rows in [
        ("a.csv", f'text,label\r\n"{long}",1\r\n\r\nb,0\r\n', read_csv, [long, "b"]),
        ("b.csv", "\ufefftext\r\nä\r\n", read_csv, ["ä"]),
        ("c.csv", "text\na\0b\n", read_csv, ["a\0b"]),
        ("a.tsv", f"\ufefftext\tlabel\r\n{long}\t1\r\n\r\n", read_tsv, [long]),
        ("a.jsonl", '\ufeff{"text": "a"}\r\n\r\n  \n{"text": "b\\u2028"}', read_jsonl, None),
        ("a.json", '\ufeff[{"text": "a"},\r\n{"text": "b\\u2028"}]\n', read_json, None),
    ]:
        (tmp_path / name).write_bytes(content.encode())
        found = [row["text"] for row in read(tmp_path / name)]
        assert found == (["a", "b\u2028"] if rows is None else rows), name
        with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
            file.write(content.encode())
        assert [row["text"] for row in read_rows(tmp_path / f"{name}.gz")] == found


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "a,b\n1\n", "a.csv:2: 1 fields, but the header names 2"),
        ("a.csv", "a,b\n1,2,3\n", "a.csv:2: 3 fields, but the header names 2"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: column names repeat"),
        ("a.csv", 'a\n"b', "a.csv:2: not valid CSV"),
        ("a.csv", "a,b\n", "a.csv: the file has no rows"),
        ("a.csv", "", "a.csv: the file has no rows"),
        ("a.tsv", "", "a.tsv: the file has no rows"),
        ("a.jsonl", "\n \n", "a.jsonl: the file has no rows"),
        ("a.jsonl", '{"a": "\0"}', "a.jsonl:1: not valid JSON"),
        ("a.json", "", "a.json:1: not valid JSON"),
        ("a.json", "[]", "a.json: the file has no rows"),
    ],
    ids=range(11),
)
def test_files_that_are_not_whole_are_one_line(name, text, says, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        read_rows(tmp_path / name)


def test_nulls_of_parquet_are_refused_where_text_is_needed(tmp_path, tokenizer):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    table = {"prompt": ["a", None], "completion": ["b", "c"], "score": [1.0, None]}
    parquet.write_table(pyarrow.table(table), path)
    task = LanguageTask("notes", str(path), str(path))
    with pytest.raises(UserError, match=r"rows.parquet: row 2: no text in column 'prompt'"):
        load_pieces(task, "train", tokenizer)
    full = LanguageTask("notes", str(path), str(path), "template", "{prompt|score}", "{completion}")
    with pytest.raises(UserError, match=r"rows.parquet: row 2: template '{prompt|score}'"):
        load_pieces(full, "train", tokenizer)


def test_bytes_that_are_no_text_do_not_become_text():
    assert _plain({"a": b"fine", "b": b"\xff\xfe"}) == {"a": "fine", "b": b"\xff\xfe"}


@pytest.mark.parametrize("value", [None, float("nan"), [1], 10**400, 2, -1, 0.5])
def test_labels_that_name_no_class_are_refused(value):
    with pytest.raises(UserError, match="row 1: "):
        read_label({"label": value}, "label", ("bad", "good"), "row 1")


def test_true_and_false_are_labels_of_two_classes_only():
    assert read_label({"label": False}, "label", ("bad", "good"), "row 1") == 0
    for labels in ((), ("bad", "fine", "good")):
        with pytest.raises(UserError, match="row 1: label true: expected"):
            read_label({"label": True}, "label", labels, "row 1")


def test_half_a_character_of_a_sentence_and_a_digit_that_is_none_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    columns = (("text",), "label", ("bad", "good"), ("accuracy",))
    for row, says in [
        ({"text": "a\ud800", "label": 1}, "row 1: column 'text' holds half of a character"),
        ({"text": "a", "label": 1, "set": "²"}, "row 1: column 'set' holds '²'"),
        ({"text": "a", "label": 1, "set": True}, "row 1: column 'set' holds True"),
        ({"text": "a", "label": 1, "set": "9" * 5000}, "row 1: column 'set' holds"),
    ]:
        path.write_text(json.dumps(row))
        task = TextTask(
            "tone", str(path), str(path), *columns, task_id=("set" in row and "set") or None
        )
        with pytest.raises(UserError, match=says):
            load_examples(task, "train")


def test_multiple_choice_takes_text_and_tells_the_word_false():
    row = {"question": "is ice hot", "passage": "p", "answer": "False"}
    assert instructed(row)["answer"] == "false"
    for change in ({"question": None}, {"answer": "perhaps"}):
        with pytest.raises(UserError):
            instructed(row | change)
    with pytest.raises(UserError, match="column 'sol1' holds nan"):
        instructed({"goal": "a", "sol1": float("nan"), "sol2": "c", "label": 0})
    choices = {"label": np.array([0, 1]), "text": np.array([b"a", b"b"], object)}
    listed = {"question": "q", "choices": choices, "answerKey": 1}
    assert instructed(listed)["answer"] == "answer2"
