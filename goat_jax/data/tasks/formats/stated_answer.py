"""Answer after a fixed phrase: "The answer is: 18", "#### 18", as PEFT's comparison reads it."""

from __future__ import annotations

from decimal import Decimal, DecimalException

PHRASES = (
    "The answer is: ",
    "The answer is ",
    "The final answer is: ",
    "The final answer is ",
    "#### ",
)


def stated_answer(text: str) -> str | None:
    """Returns the answer that a text states, in a form that is equal for equal answers, or None.

    The first of `PHRASES` that occurs counts, where it occurs last, up to the end of the line. A
    number or a fraction is compared by its value and anything else, such as 1,000, as it is
    written. Source: huggingface/peft, method_comparison/MetaMathQA/utils.py.

    >>> stated_answer("9 * 2 = 18\\n#### 18"), stated_answer("So. The answer is: $18.00.")
    ('18.0', '18.0')
    >>> stated_answer("The answer is 20/35 %"), stated_answer("#### 1,000"), stated_answer("18")
    ('0.5714285714285714', '1,000', None)
    """
    text = text.strip().rstrip(".!?")
    phrase = next((phrase for phrase in PHRASES if phrase in text), None)
    if phrase is None:
        return None
    answer = text.rpartition(phrase)[2].strip().partition("\n")[0].strip(" .!?$%")
    value = _value(answer)
    return answer if value is None else str(value)


def _value(answer: str) -> float | None:
    numbers = answer.split("/")
    if len(numbers) > 2:
        return None
    try:
        over, *under = (Decimal(number.strip()) for number in numbers)
        return float(over / under[0]) if under else float(over)
    except (DecimalException, ValueError):
        return None
