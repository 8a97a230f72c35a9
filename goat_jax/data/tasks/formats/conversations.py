"""Conversations: rows of messages, and their text in a checkpoint's chat template.

A row has `messages` (OpenAI's and transformers' format: role and content), or `conversations`
(ShareGPT's format: from and value), and optionally `tools`. Only the assistant's messages are
trained on, except those with weight 0.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from goat_jax.data.pipeline.encoding import encode_prompt
from goat_jax.data.sources.text_fields import Row, check_text, read_text, shown
from goat_jax.errors import UserError
from goat_jax.files import parse_json
from goat_jax.pretrained.quiet_transformers import import_transformers
from goat_jax.typing import Tokenizer

ASSISTANT = "assistant"
SHARE_GPT = {"human": "user", "gpt": ASSISTANT}
"""ShareGPT's role names -> transformers'; system, tool and others have the same name in both."""

RENDERING = "transformers.utils.chat_template_utils"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Jinja tag with which a chat template marks the text that the assistant generates."""

Message = Mapping[str, Any]
Tools = list[dict[str, Any]] | None
"""JSON schemas of the tools that the assistant may call."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The messages of a row.

    Attributes:
      messages: the messages, each with role, content and other keys for the template, such as
        tool_calls.
      weights: the weight of each message: 1, or 0 for a message that is not trained on.
      tools: the JSON schemas of the tools that the assistant may call; None if there are none.
    """

    messages: Sequence[Message]
    weights: Sequence[int]
    tools: Tools = None


def read_conversation(row: Row) -> Conversation:
    """Reads the conversation of a row; a column may hold its value or the value as JSON text.

    Raises UserError for a row without messages, and for a malformed message.

    >>> row = {"conversations": [{"from": "human", "value": "2?"}, {"from": "gpt", "value": "two"}]}
    >>> read_conversation(row).messages[1]
    {'role': 'assistant', 'content': 'two'}
    """
    column = "conversations" if row.get("messages") is None else "messages"
    column = column if row.get(column) is not None else "messages"
    values = _from_json(row.get(column), column)
    if not isinstance(values, list) or not values:
        content_note = "" if row.get(column) is None else f": it holds {shown(values)}"
        raise UserError(
            f"no list in column {column!r}{content_note} (the row has {', '.join(map(str, row))})"
        )
    # Some ShareGPT rows have the system message in a separate column.
    system = read_text(row, "system", default="") if column == "conversations" else ""
    pairs = [({"role": "system", "content": system}, 1)] if system else []
    pairs += [_message(value, f"message {n}") for n, value in enumerate(values, start=1)]
    messages, weights = tuple(m for m, _ in pairs), tuple(w for _, w in pairs)
    return Conversation(messages, weights, _tools(row))


def _from_json(value: object, column: str) -> Any:
    return parse_json(value, f"column {column!r}") if isinstance(value, str) else value


def _tools(row: Row) -> Tools:
    if not row.get("tools"):
        return None
    tools = _from_json(row["tools"], "tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"column 'tools' holds {shown(tools)}: give a list of JSON schemas")
    return tools or None


def _message(value: object, where: str) -> tuple[dict[str, Any], int]:
    """Returns a message in transformers' format, and its weight."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is {shown(value)}: give an object with role and content")
    # Tabular formats give every message every key, with null for missing ones.
    message = {key: item for key, item in value.items() if item is not None}
    if "role" not in message and "from" in message:
        message["role"] = message.pop("from")
        message.setdefault("content", message.pop("value", None))
    role = check_text(message.get("role"), f"the role of {where}")
    role = SHARE_GPT.get(role, role)
    weight = message.pop("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise UserError(f"the weight of {where} is {shown(weight)}: give 1 (trained on) or 0 (not)")
    content = _content(message.get("content"), where, optional=bool(message.get("tool_calls")))
    return {**message, "role": role, "content": content}, int(weight)


def _content(value: object, where: str, optional: bool) -> str:
    """Returns a message's text; the texts of a list of parts are concatenated."""
    if value is None and optional:
        return ""  # a message with tool calls may have no text
    if not isinstance(value, list):
        return check_text(value, f"the content of {where}")
    return "".join(_part(part, f"part {n} of {where}") for n, part in enumerate(value, start=1))


def _part(part: object, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise UserError(f"{where} is {shown(part)}: only parts of type text can be trained on")
    return check_text(part.get("text"), f"the text of {where}")


def chat_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    answer: bool = False,
    tools: Tools = None,
) -> str:
    """Renders messages with the model's chat template, special tokens included.

    Args:
      tokenizer: the tokenizer with the chat template.
      messages: the messages.
      answer: whether to end with the marker that begins the assistant's turn.
      tools: the JSON schemas of the tools that the assistant may call.

    Raises UserError if the tokenizer has no template or the template rejects the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("this tokenizer has no chat template: give prompt and completion instead")
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=answer
        )
    except Exception as error:  # a template can raise any error
        raise _refusal(error) from None
    return check_text(text, "the chat template's text")


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message], tools: Tools = None) -> list[int]:
    """Returns a conversation's token ids as a prompt for the assistant, as in transformers.

    Raises UserError as `chat_text` does.
    """
    text = chat_text(tokenizer, messages, answer=True, tools=tools)
    return encode_prompt(tokenizer, text, special=False)


def _refusal(error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"the chat template refuses the messages ({reason})")


def chat_spans(
    tokenizer: Tokenizer, conversation: Conversation
) -> tuple[str, list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns a conversation's text up to its last answer, and the spans of its answers.

    A template with `{% generation %}` tags marks the answers. With any other template an answer is
    the text added to the prompt of its turn, so the template must not change earlier turns.

    Returns the text, the spans (first character, one past the last) of the answers to train on, and
    the spans of the answers with weight 0.

    Raises UserError for a conversation without an answer, and for a template that ignores the tools
    or rewrites earlier messages.
    """
    roles = [message["role"] for message in conversation.messages]
    answers = [number for number, role in enumerate(roles) if role == ASSISTANT]
    if not answers:
        raise UserError("no message of the assistant: there is nothing to train on")
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
                "unclear which of them has weight 0"
            )
        weights = [1] * len(spans)
    weighted = list(zip(spans, weights, strict=True))
    return text, [s for s, w in weighted if w], [s for s, w in weighted if not w]


def _marked_spans(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Tools
) -> tuple[str, list[tuple[int, int]]] | None:
    """Returns the text and the spans marked as generated; None if the template has no marks."""
    text = chat_text(tokenizer, messages, tools=tools)  # raises the one-line UserError first
    template = tokenizer.get_chat_template(tools=tools)
    if not GENERATION.search(template):
        return None
    inputs: dict[str, Any] = {"conversations": [list(messages)], "tools": tools}
    rendered: Any = import_transformers(RENDERING).render_jinja_template(
        **inputs,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return text, rendered[1][0]


def _added_spans(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Tools, answers: Sequence[int]
) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text up to the last answer, and the span each answer adds to its prompt."""
    done, spans = "", []
    for number in answers:
        prompt = chat_text(tokenizer, messages[:number], answer=True, tools=tools)
        answered = chat_text(tokenizer, messages[: number + 1], tools=tools)
        if not (prompt.startswith(done) and answered.startswith(prompt)):
            raise UserError(
                "the chat template rewrites earlier messages, so the answers cannot be separated "
                "from the prompts: give prompt and completion instead"
            )
        spans.append((len(prompt), len(answered)))
        done = answered
    return done, spans
