r"""Final number of a worked answer: "#### 18", "\boxed{18}", "The answer is: $1,800."."""

import re
from fractions import Fraction

UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
# After a word, a number or a closing bracket a minus is an operator; elsewhere it is a sign, also
# before a currency sign.
SIGN = r"(?:(?<![\w)\]}])[-+])?"
MONEY = r"(?:\\?[$€£¥]\s?)?"
NUMBER = re.compile(
    rf"(?P<sign>{SIGN}){MONEY}(?P<inner>(?<![\d.,])-)?(?:"
    rf"\\[dt]?frac\s*\{{\s*(?P<over>-?\d+)\s*\}}\s*\{{\s*(?P<under>\d+)\s*\}}"
    rf"|(?P<whole>\d+)\s+(?P<part>\d+)/(?P<parts>\d+)"
    rf"|(?P<top>\d+)\s?/\s?(?P<bottom>\d+)(?![\d/])"
    rf"|(?P<plain>{UNSIGNED})"
    r")"
)
STRICT = re.compile(r"####\s*(-?[0-9]+(?:,[0-9]+)*)")
STATED = re.compile(r"answer\s+is\b\s*:?|answer\s*:", re.IGNORECASE)


def numbers_in(text: str) -> list[Fraction]:
    """Returns all numbers of a text, in order.

    Thousands may have commas. Currency signs, percent signs and units are ignored, since GSM8K's
    answers omit them. A fraction is one number.

    >>> [str(number) for number in numbers_in("-$1,250.50, then 3/4 of 10-2 and 25%")]
    ['-2501/2', '3/4', '10', '2', '25']
    """
    text = text.replace("\N{MINUS SIGN}", "-").replace("{,}", ",").replace(r"\%", "%")
    return [value for match in NUMBER.finditer(text) for value in _values(match)]


def _values(match: re.Match[str]) -> list[Fraction]:
    groups = match.groupdict()
    sign = -1 if groups["sign"] == "-" or groups["inner"] else 1

    def ratio(over: str, under: str) -> Fraction | None:
        top, bottom = int(groups[over]), int(groups[under])
        return Fraction(top, bottom) if bottom else None

    if groups["over"]:
        value = ratio("over", "under")
    elif groups["whole"]:
        part = ratio("part", "parts")
        value = None if part is None else int(groups["whole"]) + part
    elif groups["top"]:
        value = ratio("top", "bottom")
    else:
        value = Fraction(groups["plain"].replace(",", ""))
    return [] if value is None else [sign * value]


def extract_number(text: str) -> Fraction | None:
    r"""Returns the final number of a worked answer, or None.

    If "####", \boxed{} or the words "the answer is" mark the answer, returns the first number there
    (after the last "=", if it shows a calculation). Otherwise returns the text's last number.

    >>> print(extract_number("She sells 16 - 3 - 4 = 9 eggs for 2 * 9 = $18 every day."))
    18
    >>> print(extract_number("#### -1,234.5 dollars in 2 years"))
    -2469/2
    """
    marked = _marked(text)
    if marked is not None:
        numbers = numbers_in(marked.rpartition("=")[2]) or numbers_in(marked)
        if numbers:
            return numbers[0]
    numbers = numbers_in(text)
    return numbers[-1] if numbers else None


def strict_number(text: str) -> Fraction | None:
    """Returns the integer after the first "####", or None, as in the paper's evaluation script.

    >>> print(strict_number("#### -1,234.5 dollars"), strict_number("The answer is 18."))
    -1234 None
    """
    match = STRICT.search(text)
    return None if match is None else Fraction(match[1].replace(",", ""))


def _marked(text: str) -> str | None:
    """Returns the rest of the line or sentence after the strongest answer mark, or None."""
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0]
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    stated = list(STATED.finditer(text))
    if not stated:
        return None
    line = text[stated[-1].end() :].strip().partition("\n")[0]
    return re.split(r"[.!?;](?:\s|$)", line, maxsplit=1)[0]


def _boxed(text: str) -> str | None:
    r"""Returns the content of the last \boxed{...}, with nested braces; None if there is none."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    inside, depth = text[start + len(r"\boxed{") :], 1
    for place, letter in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return inside[:place]
    return inside
