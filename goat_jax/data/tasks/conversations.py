"""Conversations: rows of messages, and their text in a checkpoint's own chat template.

A row has `messages` (OpenAI's and transformers' form: role and content), or `conversations`
(ShareGPT's: from and value), and maybe `tools`. Only what the assistant says is learnt; a message
with weight 0 is not.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from goat_jax.data.pipeline.encoding import encode_prompt
from goat_jax.data.sources.text_fields import Row, check_text, read_text, shown
from goat_jax.errors import UserError
from goat_jax.files import parse_json

ASSISTANT = "assistant"
SHARE_GPT = {"human": "user", "gpt": ASSISTANT}
"""ShareGPT's names of roles; system, tool and the like have one name in both forms."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The mark with which a template itself says what the assistant generates."""

Message = Mapping[str, Any]
Tools = list[dict[str, Any]] | None
"""JSON schemas of what the assistant may call."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The messages of a row.

    Attributes:
      messages: role and content of each, with what else the template may read, such as tool_calls.
      weights: 1, or 0 for a message that is not learnt.
      tools: JSON schemas of the tools that the assistant may call; None if there are none.
    """

    messages: Sequence[Message]
    weights: Sequence[int]
    tools: Tools = None


def read_conversation(row: Row) -> Conversation:
    """The conversation of a row; each column may hold JSON's text instead of its value.

    >>> row = {"conversations": [{"from": "human", "value": "2?"}, {"from": "gpt", "value": "two"}]}
    >>> read_conversation(row).messages[1]
    {'role': 'assistant', 'content': 'two'}
    """
    column = "conversations" if row.get("messages") is None else "messages"
    column = column if row.get(column) is not None else "messages"
    values = _from_json(row.get(column), column)
    if not isinstance(values, list) or not values:
        found = "" if row.get(column) is None else f": it holds {shown(values)}"
        raise UserError(
            f"no list in column {column!r}{found} (the row has {', '.join(map(str, row))})"
        )
    # Some ShareGPT rows have the system's message in a column of its own.
    system = read_text(row, "system", default="") if column == "conversations" else ""
    pairs = [({"role": "system", "content": system}, 1)] if system else []
    pairs += [_message(value, f"message {n}") for n, value in enumerate(values, start=1)]
    return Conversation(*zip(*pairs, strict=True), tools=_tools(row))  # type: ignore[misc]


def _from_json(value: Any, column: str) -> Any:
    return parse_json(value, f"column {column!r}") if isinstance(value, str) else value


def _tools(row: Row) -> Tools:
    if not row.get("tools"):
        return None
    tools = _from_json(row["tools"], "tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"column 'tools' holds {shown(tools)}: give a list of JSON schemas")
    return tools or None


def _message(value: Any, where: str) -> tuple[dict[str, Any], int]:
    """A message in transformers' form, and its weight."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is {shown(value)}: give an object with role and content")
    # Tables give every message every key, null where it has none.
    given = {key: item for key, item in value.items() if item is not None}
    if "role" not in given and "from" in given:
        given["role"] = given.pop("from")
        given.setdefault("content", given.pop("value", None))
    role = check_text(given.get("role"), f"the role of {where}")
    role = SHARE_GPT.get(role, role)
    weight = given.pop("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise UserError(f"the weight of {where} is {shown(weight)}: give 1 (learnt) or 0 (not)")
    content = _content(given.get("content"), where, optional=bool(given.get("tool_calls")))
    return {**given, "role": role, "content": content}, int(weight)


def _content(value: Any, where: str, optional: bool) -> str:
    """A message's text; that of its parts is joined as it is."""
    if value is None and optional:
        return ""  # a call of tools may say nothing beside
    if not isinstance(value, list):
        return check_text(value, f"the content of {where}")
    return "".join(_part(part, f"part {n} of {where}") for n, part in enumerate(value, start=1))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise UserError(f"{where} is {shown(part)}: only parts of type text can be learnt")
    return check_text(part.get("text"), f"the text of {where}")


def chat_text(
    tokenizer: Any,
    messages: Sequence[Message],
    answer: bool = False,
    tools: Tools = None,
) -> str:
    """Messages as the model's own chat template writes them, special tokens included.

    Args:
      answer: end with the mark that begins the assistant's turn.
      tools: JSON schemas of the tools that the assistant may call.

    Raises UserError if the tokenizer has no template or the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("this tokenizer has no chat template: give prompt and completion instead")
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=answer
        )
    except Exception as error:  # whatever the template's own language raises
        raise _refusal(error) from None
    return check_text(text, "the chat template's text")


def chat_ids(tokenizer: Any, messages: Sequence[Message], tools: Tools = None) -> list[int]:
    """Token ids of a conversation that the assistant goes on with, as transformers gives them.

    Raises UserError as `chat_text`.
    """
    text = chat_text(tokenizer, messages, answer=True, tools=tools)
    return encode_prompt(tokenizer, text, special=False)


def _refusal(error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"the chat template refuses the messages ({reason})")


def chat_spans(
    tokenizer: Any, conversation: Conversation
) -> tuple[str, list[tuple[int, int]], list[tuple[int, int]]]:
    """A conversation's text up to its last answer, and the characters of its answers.

    A template with `{% generation %}` marks says itself where answers are. Of another one an answer
    is what is added to the prompt of its turn, so earlier turns must stay as they were.

    Returns the text, the spans (first character, one after the last) of the answers that are
    learnt, and the spans of those with weight 0.

    Raises UserError for a conversation without an answer, and for a template that leaves the tools
    out or rewrites earlier messages.
    """
    roles = [message["role"] for message in conversation.messages]
    answers = [number for number, role in enumerate(roles) if role == ASSISTANT]
    if not answers:
        raise UserError("no message of the assistant: nothing could be learnt")
    messages, tools = conversation.messages[: answers[-1] + 1], conversation.tools
    if tools and chat_text(tokenizer, messages, tools=tools) == chat_text(tokenizer, messages):
        raise UserError("the chat template has no place for tools: use a checkpoint that has one")
    marked = _marked_spans(tokenizer, messages, tools)
    text, spans = marked or _added_spans(tokenizer, messages, tools, answers)
    weights = [conversation.weights[number] for number in answers]
    if len(spans) != len(answers):
        if not all(weights):
            raise UserError(
                f"the chat template marks {len(spans)} spans for {len(answers)} answers, so it is "
                "not known which of them the weight 0 is for"
            )
        weights = [1] * len(spans)
    weighted = list(zip(spans, weights, strict=True))
    return text, [s for s, w in weighted if w], [s for s, w in weighted if not w]


def _marked_spans(
    tokenizer: Any, messages: Sequence[Message], tools: Tools
) -> tuple[str, list[tuple[int, int]]] | None:
    """The text and what the template marks as generated; None if it marks nothing."""
    from transformers.utils.chat_template_utils import render_jinja_template

    text = chat_text(tokenizer, messages, tools=tools)  # refuses in one line
    template = tokenizer.get_chat_template(tools=tools)
    if not GENERATION.search(template):
        return None
    given: dict[str, Any] = {"conversations": [list(messages)], "tools": tools}
    found: Any = render_jinja_template(
        **given,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return text, found[1][0]


def _added_spans(
    tokenizer: Any, messages: Sequence[Message], tools: Tools, answers: Sequence[int]
) -> tuple[str, list[tuple[int, int]]]:
    """The text up to the last answer, and what each answer adds to the prompt of its turn."""
    done, spans = "", []
    for number in answers:
        asked = chat_text(tokenizer, messages[:number], answer=True, tools=tools)
        answered = chat_text(tokenizer, messages[: number + 1], tools=tools)
        if not (asked.startswith(done) and answered.startswith(asked)):
            raise UserError(
                "the chat template rewrites earlier messages, so the answers cannot be told from "
                "the prompts: give prompt and completion instead"
            )
        spans.append((len(asked), len(answered)))
        done = answered
    return done, spans
