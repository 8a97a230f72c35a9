"""Texts are tokenised whole: the same ids when learnt, generated from, scored, and as transformers
gives them, for tokenizers of every kind."""

import json
from typing import cast

import numpy as np
import pytest

from goat_jax.data.pipeline.encoding import Piece, encode_pieces, encode_prompt
from goat_jax.data.pipeline.packing import load_texts
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.formats.conversations import chat_ids, read_conversation
from goat_jax.data.tasks.language import LanguageTask
from goat_jax.evaluation.llm_judge import conversation
from goat_jax.typing import Tokenizer
from tiny_tokenizers import KINDS, TEMPLATES, make_tokenizer

CHATS = {
    "plain": [("user", "what is 2 + 2?"), ("assistant", "4")],
    "system": [("system", "you are a helpful goat."), ("user", "hello"), ("assistant", "hello 🐐")],
    "turns": [
        ("user", "what is 2 + 2?"),
        ("assistant", "the answer is 4"),
        ("user", " and two  more?\n"),
        ("assistant", "naïve 日本 café"),
        ("user", "🐐"),
        ("assistant", "hello\n\nthe user"),
    ],
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
cases = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def tokenizer_of():
    made = {}

    def tokenizer_of(kind, template=None):
        if kind not in made:
            made[kind] = make_tokenizer(kind)
        made[kind].chat_template = None if template is None else TEMPLATES[template]
        return made[kind]

    return tokenizer_of


def messages(name) -> list[dict]:
    return [{"role": role, "content": text} for role, text in CHATS[name]]


@pytest.fixture
def learn(tmp_path):
    def learn(tokenizer, row, **options):
        """Token ids and mask of the one text of a training set."""
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row))
        task = LanguageTask("notes", str(path), str(path), **options)
        texts = load_texts(task, "train", tokenizer, 4000)
        return texts.input_ids[0].tolist(), texts.loss_masks[0]

    return learn


def transformers_ids(tokenizer, chat, **options):
    return tokenizer.apply_chat_template(chat, return_dict=True, **options)["input_ids"]


@cases
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_a_conversation_has_transformers_ids_when_learnt_and_when_answered(
    kind, template, chat, tokenizer_of, learn
):
    tokenizer, chat = tokenizer_of(kind, template), messages(chat)
    ids, learnt = learn(tokenizer, {"messages": chat}, format="messages")
    assert ids == transformers_ids(tokenizer, chat)
    for number, message in enumerate(chat):
        if message["role"] == "assistant":
            prompt = chat_ids(tokenizer, chat[:number])
            assert prompt == transformers_ids(tokenizer, chat[:number], add_generation_prompt=True)
            # The generated text continues with exactly the tokens that were trained on.
            assert ids[: len(prompt)] == prompt
            assert learnt[len(prompt)] and not learnt[len(prompt) - 1]


@cases
@pytest.mark.parametrize("template", ["chatml", "llama_2", "llama_3"])
def test_what_is_learnt_of_a_conversation_is_what_the_assistant_says(
    kind, template, tokenizer_of, learn
):
    tokenizer, chat = tokenizer_of(kind, template), messages("turns")
    ids, learnt = learn(tokenizer, {"messages": chat}, format="messages")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], learnt, [0]])))
    spans = [ids[start:end] for start, end in edges.reshape(-1, 2)]
    assert len(spans) == 3
    end = {"chatml": "<|im_end|>", "llama_2": "</s>", "llama_3": "<|eot|>"}[template]
    for span, message in zip(spans, chat[1::2], strict=True):
        text = tokenizer.decode(span).lower()
        said = tokenizer.decode(tokenizer(message["content"], add_special_tokens=False).input_ids)
        assert text.replace(" ", "").strip() == (said.lower() + end).replace(" ", "")


@cases
def test_a_template_that_marks_the_answers_has_transformers_mask(kind, tokenizer_of, learn):
    tokenizer, chat = tokenizer_of(kind, "marked"), messages("turns")
    ids, learnt = learn(tokenizer, {"messages": chat}, format="messages")
    expected = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == expected["input_ids"]
    assert learnt.astype(int).tolist() == expected["assistant_masks"]


@cases
@pytest.mark.parametrize("template", ["chatml", "llama_2", "marked"])
@pytest.mark.parametrize("learn_what", ["completion", "all"])
def test_a_message_of_weight_0_is_not_learnt(kind, template, learn_what, tokenizer_of, learn):
    tokenizer, chat = tokenizer_of(kind, template), messages("turns")
    _, before = learn(tokenizer, {"messages": chat}, format="messages")
    places = np.flatnonzero(np.diff(np.concatenate([[0], before, [0]]))).reshape(-1, 2)
    chat[1]["weight"], chat[3]["weight"], chat[5]["weight"] = 1, 0, 1.0
    ids, learnt = learn(tokenizer, {"messages": chat}, format="messages", loss_on=learn_what)
    assert ids == transformers_ids(tokenizer, messages("turns"))
    kept = before if learn_what == "completion" else np.ones_like(before)
    kept[slice(*places[1])] = False
    assert (learnt == kept).all()


@cases
def test_tools_go_to_the_template(kind, tokenizer_of, learn):
    tokenizer, chat = tokenizer_of(kind, "chatml"), messages("plain")
    for tools in (TOOLS, json.dumps(TOOLS)):
        ids, _ = learn(tokenizer, {"messages": chat, "tools": tools}, format="messages")
        assert ids == transformers_ids(tokenizer, chat, tools=TOOLS)
        assert ids != transformers_ids(tokenizer, chat)


@cases
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("Answer:", " 4"), ("Question: what is 2 + 2 ?\nAnswer: ", "4"), ("the us", "er says"),
     ("日", "本 🐐"), ("", "hello"), ("hello ", "  \n the")],
    ids=["space", "trailing space", "inside a word", "unicode", "no prompt", "spaces"],
)  # fmt: skip
def test_prompt_and_completion_are_tokenised_as_one_text(
    kind, prompt, completion, tokenizer_of, learn
):
    tokenizer = tokenizer_of(kind)
    ids, learnt = learn(tokenizer, {"prompt": prompt, "completion": completion})
    body = tokenizer(prompt + completion, add_special_tokens=False)
    start = [] if kind == "byte_level" else [{"word_piece": 1}.get(kind, tokenizer.bos_token_id)]
    assert ids == start + body["input_ids"] + [tokenizer.eos_token_id]
    assert not learnt[: len(start)].any() and learnt[-1]
    # A token is learnt if it holds a character of the completion: none is lost.
    for token, (first, after) in enumerate(body.encodings[0].offsets, start=len(start)):
        if first < after:
            assert learnt[token] == (after > len(prompt)), (token, first, after)
    scored, mask = encode_pieces(
        tokenizer, [Piece(prompt, False), Piece(completion, True)], end=False
    )
    assert scored.tolist() == ids[:-1] and (mask == learnt[:-1]).all()


def test_a_dummy_prefix_is_put_once(tokenizer_of, learn):
    tokenizer = tokenizer_of("llama_2")
    ids, learnt = learn(tokenizer, {"prompt": "Answer:", "completion": " two"})
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert "".join(tokens) == "<s>▁Answer:▁two</s>"
    assert "".join(np.array(tokens)[learnt]) == "▁two</s>"
    assert ids[: np.argmax(learnt)] == encode_prompt(tokenizer, "Answer:")


def test_spaces_that_are_tokens_belong_to_their_part(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")  # its offsets leave spaces out
    pieces = [Piece("hello", False), Piece("  ", True), Piece("<|im_end|>", False)]
    ids, learnt = encode_pieces(tokenizer, pieces, end=False)
    tokens = np.array(tokenizer.convert_ids_to_tokens(ids.tolist()))
    assert "".join(tokens[learnt]) == "ĠĠ"


@cases
def test_a_text_that_has_the_first_or_the_last_token_gets_no_second(kind, tokenizer_of):
    tokenizer = tokenizer_of(kind)
    first = "[CLS]" if kind == "word_piece" else "<s>"
    given, _ = encode_pieces(tokenizer, [Piece(first + "hello</s>", True)], end=True)
    tokens = tokenizer.convert_ids_to_tokens(given.tolist())
    assert tokens.count("</s>") == 1 and tokens[-1] == "</s>" and tokens.count(first) == 1


@cases
def test_a_prompt_has_no_end(kind, tokenizer_of):
    tokenizer = tokenizer_of(kind)
    tokens = tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, "hello"))
    assert tokens[-1] not in ("[SEP]", "</s>")
    assert tokens[0] == {"byte_level": "he", "word_piece": "[CLS]"}.get(kind, "<s>")


class _Slow:
    """A tokenizer without offsets, as those are that are written in Python."""

    is_fast = False

    def __init__(self, fast):
        self._fast = fast

    def __getattr__(self, name):
        return getattr(self._fast, name)

    def __call__(self, text, **options):
        assert "return_offsets_mapping" not in options
        return self._fast(text, **options)


def slow_form(tokenizer) -> Tokenizer:
    return cast(Tokenizer, _Slow(tokenizer))


@cases
@pytest.mark.parametrize("template", ["chatml", "llama_2", "llama_3"])
def test_a_tokenizer_without_offsets_gives_the_same(kind, template, tokenizer_of, learn):
    tokenizer = tokenizer_of(kind, template)
    row = {"messages": messages("turns")}
    expected = learn(tokenizer, row, format="messages")
    found = learn(_Slow(tokenizer), row, format="messages")
    assert found[0] == expected[0]
    assert (found[1] == expected[1]).all()


def test_without_offsets_a_token_across_the_beginning_is_learnt(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    pieces = [Piece("the assis", False), Piece("tant s", True), Piece("ays", False)]
    fast = encode_pieces(tokenizer, pieces, end=False)
    slow = encode_pieces(slow_form(tokenizer), pieces, end=False)
    assert fast[0].tolist() == slow[0].tolist() and fast[1].tolist() == slow[1].tolist()


def test_share_gpt_rows_are_the_same_conversation(tokenizer_of, learn):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    chat = [{"from": names[role], "value": text} for role, text in CHATS["system"]]
    tokenizer = tokenizer_of("byte_level", "chatml")
    expected = learn(tokenizer, {"messages": messages("system")}, format="messages")
    found = learn(tokenizer, {"conversations": chat}, format="messages")
    assert found[0] == expected[0] and (found[1] == expected[1]).all()


def test_a_system_column_begins_a_share_gpt_conversation():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for row in (
        {"conversations": turns, "system": "s"},
        {"conversations": [{"from": "system", "value": "s"}, *turns]},
    ):
        assert [m["content"] for m in read_conversation(row).messages] == ["s", "a", "b"]


@pytest.mark.parametrize("template", ["chatml", "llama_2", "llama_3"])
def test_a_judged_conversation_has_transformers_ids(template, tokenizer_of):
    tokenizer = tokenizer_of("llama_2", template)
    task = EvalTask("chat", "a", "a", format="messages", eval="conversation")
    prompt = conversation(task, tokenizer, ["what is 2?", "and 4?"], ["two"])
    chat = [("user", "what is 2?"), ("assistant", "two"), ("user", "and 4?")]
    chat = [{"role": role, "content": text} for role, text in chat]
    assert prompt == transformers_ids(tokenizer, chat, add_generation_prompt=True)


def test_parts_of_type_text_are_joined_and_a_call_of_tools_may_say_nothing():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}], "name": None}
    found = read_conversation({"messages": [{"role": "user", "content": parts}, call]})
    assert found.messages == (
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]},
    )
