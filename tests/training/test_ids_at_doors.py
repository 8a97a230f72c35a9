"""Ids without a row in a table are refused at every door, and what ends an answer is one set."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from goat_jax.cli.main import main
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.pipeline.dataset import with_known_ids
from goat_jax.data.pipeline.packing import Texts
from goat_jax.data.pipeline.token_ids import check_ids, table_sizes
from goat_jax.data.pipeline.tokenize import Encoded, load_tokenizer
from goat_jax.data.tasks.registry import language_files
from goat_jax.errors import UserError
from goat_jax.evaluation.model import load_eval_model
from goat_jax.evaluation.sampler import Generator, Sampling
from goat_jax.models.decoder.model import Decoder
from goat_jax.models.load import load_model
from goat_jax.pretrained.gguf.config import _end_tokens
from goat_jax.training.data import load_data, load_rows
from kinds import expect
from tiny_language import WORDS, write_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the model's folder, to be changed."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in made.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def change(folder, name, **values):
    path = folder / name
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | values))


def add_token(folder, **tokens):
    """A token beyond the model's table, as after add_special_tokens without resizing."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(tokens or {"additional_special_tokens": ["[NEW]"]})
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == len(WORDS) + 1


@pytest.fixture
def config(folder, tmp_path):
    def config(prompt="what is the sky ?", **row) -> RunConfig:
        file = tmp_path / "rows.jsonl"
        rows = [{"prompt": f"{prompt} thing", "completion": "blue"} | row] * 2
        rows[0] = {"prompt": prompt, "completion": "blue"} | row
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return RunConfig(
            model=ModelConfig(str(folder)),
            task=language_files(str(file), str(file), packing=False),
            adapter=AdapterConfig(method="lora", modules_to_save=()),
            train=TrainConfig(steps=2, batch_size=2, max_length=16, num_buckets=1),
            out=str(tmp_path / "run"),
        )

    return config


def test_a_padding_token_that_the_model_lacks_is_replaced_by_one_it_has(folder, config):
    add_token(folder, pad_token="[NEW]")
    assert load_tokenizer(folder).pad_token_id == len(WORDS)
    data = load_data(config())
    for batch in (next(data.train), *data.evaluation):
        assert (batch["attention_mask"] == 0).any()
        assert batch["input_ids"].max() < len(WORDS)


@pytest.mark.parametrize("splits", [("train",), ("evaluation",)])
def test_a_token_that_the_model_lacks_is_refused_in_rows(splits, folder, config):
    add_token(folder)
    with pytest.raises(UserError, match=f"token {len(WORDS)}, but the model has {len(WORDS)}:"):
        load_rows(config("what is [NEW]"), *splits)


def test_an_end_of_text_that_the_model_lacks_is_refused_in_rows(folder, config):
    add_token(folder, eos_token="[NEW]")
    with pytest.raises(UserError, match="take both from one checkpoint"):
        load_rows(config(), "train")


def test_generate_refuses_a_token_that_the_model_lacks(folder, capsys):
    add_token(folder)
    assert main(["generate", str(folder), "--prompt", "what is [NEW]"]) == 2
    error = capsys.readouterr().err
    assert f"the tokenizer gives token {len(WORDS)}, but the model has {len(WORDS)}" in error


def test_eval_tasks_refuse_a_token_that_the_model_lacks(folder):
    add_token(folder)
    opened = load_eval_model(str(folder))
    with pytest.raises(UserError, match="take both from one checkpoint"):
        opened.scorer()([("what is [NEW] ?", "blue")])
    with pytest.raises(UserError, match="take both from one checkpoint"):
        opened.scorer()([("what is", "[NEW]")])
    with pytest.raises(UserError, match="take both from one checkpoint"):
        opened.generator().answers(["sky", "[NEW]"], Sampling(max_new_tokens=2))


def test_an_end_of_answer_that_the_model_lacks_is_refused(folder):
    change(folder, "config.json", eos_token_id=[1, len(WORDS)])
    with pytest.raises(UserError, match="take both from one checkpoint"):
        load_eval_model(str(folder)).generator()


def test_ids_of_every_table_are_checked():
    pair, lengths = [np.array([0, 3])], np.array([2])
    rows = Encoded(pair, [np.array([0, 1])], lengths, np.array([1]), pad_id=9)
    sizes = {"vocab_size": 4, "type_vocab_size": 2}
    assert with_known_ids(rows, sizes).gather(np.array([0]), 3)["input_ids"].tolist() == [[0, 3, 0]]
    with pytest.raises(UserError, match="token type 1, but the model has 1:"):
        with_known_ids(rows, sizes | {"type_vocab_size": 1})
    with pytest.raises(UserError, match="token 3, but the model has 3:"):
        with_known_ids(rows, sizes | {"vocab_size": 3})
    with pytest.raises(UserError, match="token -1"):
        check_ids({"vocab_size": [[2], [-1]]}, sizes)
    assert expect(Encoded, with_known_ids(rows, {"vocab_size": 10})).pad_id == 9


def test_tasks_beyond_the_adapters_table_are_refused():
    spec = AdapterConfig(method="moelora").spec()
    learnt = [np.array([False, True])]
    for task, fits in ((16, True), (17, False)):
        tasks = {"task_ids": np.array([task])}
        rows = Texts([np.array([4, 5])], learnt, [[0]], np.array([2]), tasks=tasks)
        if fits:
            with_known_ids(rows, table_sizes(None, spec.router))
        else:
            with pytest.raises(UserError, match="task 17, but the adapter has tasks 0 to 16"):
                with_known_ids(rows, table_sizes(None, spec.router))


@pytest.mark.parametrize(
    ("config_ids", "generation_ids", "ends"),
    [
        (1, None, (1,)),
        (None, 3, (1, 3)),
        ([4], [5, 6], (1, 4, 5, 6)),
        (None, None, (1,)),
        ([1, 4], 4, (1, 4)),
    ],
)
def test_an_answer_ends_at_any_token_that_a_file_names(folder, config_ids, generation_ids, ends):
    change(folder, "config.json", eos_token_id=config_ids)
    change(folder, "generation_config.json", eos_token_id=generation_ids)
    loaded = load_model(folder, key=jax.random.key(0))
    generator = Generator(expect(Decoder, loaded.model), load_tokenizer(folder))
    assert generator.end_ids == ends


def test_a_gguf_file_may_name_several_ends():
    for given, ends in [
        ({"eos": 2}, 2),
        ({"eos": 2, "eot": 7}, [2, 7]),
        ({"eot": 7, "eom": 7}, 7),
        ({}, None),
    ]:
        keys = {f"tokenizer.ggml.{name}_token_id": number for name, number in given.items()}
        assert _end_tokens(SimpleNamespace(get=keys.get)) == ends  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_answer_stops_at_the_generation_configs_token(folder):
    opened = load_eval_model(str(folder))
    sampling = Sampling(max_new_tokens=6)
    said = [int(token[0]) for token in opened.generator().tokens([[3, 9, 5]], sampling)]
    change(folder, "generation_config.json", eos_token_id=[said[1]])
    stopped = load_eval_model(str(folder)).generator().tokens([[3, 9, 5]], sampling)
    assert [int(token[0]) for token in stopped] == said[: said.index(said[1]) + 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"eos_token_id": "</s>"}',
            "generation_config.json: eos_token_id is '</s>': give a token",
        ),
        ('{"eos_token_id": [1, true]}', "generation_config.json: eos_token_id is"),
        ('{"eos_token_id": 1.5}', "generation_config.json: eos_token_id is 1.5"),
        ('{"eos_token_id": ', "generation_config.json is not valid JSON"),
        ("[1]", "generation_config.json holds a list"),
        ("[" * 100_000, "generation_config.json is nested too deep"),
    ],
    ids=["text", "bool", "float", "cut", "list", "deep"],
)
def test_a_damaged_generation_config_is_one_line(text, says, folder, capsys):
    (folder / "generation_config.json").write_text(text)
    assert main(["generate", str(folder), "--prompt", "sky"]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1


def test_texts_end_with_the_checkpoints_token_where_the_tokenizer_names_none(folder, config):
    tokenizer = expect(PreTrainedTokenizerFast, load_tokenizer(folder))
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    change(folder, "config.json", eos_token_id=None)
    change(folder, "generation_config.json", eos_token_id=[3, 4])
    assert load_tokenizer(folder).eos_token_id is None
    train = expect(Texts, load_rows(config(), "train")[0])
    assert [ids[-1] for ids in train.input_ids] == [3, 3]
    assert all(learnt[-1] for learnt in train.loss_masks)
