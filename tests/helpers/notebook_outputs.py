"""Comparison of a notebook's kept outputs with the code's: text exactly, numbers by tolerances."""

import re

NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\d)"
)


def shown(cell) -> tuple[str, list[str]]:
    """Returns a cell's printed and returned text as one, and the kinds of its other results.

    Warnings are left out, and how the text was cut into pieces.
    """
    text, kinds = "", []
    for output in cell.get("outputs", []):
        if output.get("output_type") == "stream":
            text += output["text"] if output["name"] == "stdout" else ""
        elif "data" in output:
            others = [kind for kind in output["data"] if kind != "text/plain"]
            kinds += others
            # The text beside a picture says no more than its size in pixels.
            text += "" if others else output["data"].get("text/plain", "") + "\n"
    return text, kinds


def difference(kept: str, now: str) -> str | None:
    """The first difference between two texts in words; None if there is none that counts."""
    words, others = _words(kept), _words(now)
    for word, other in zip(words, others, strict=False):
        if not _alike(word, other):
            return f"kept {word!r}, now {other!r}"
    if len(words) != len(others):
        return f"kept {len(words)} words, now {len(others)}"
    return None


def _words(text: str) -> list[str]:
    """Numbers and the text between them, without the width of columns."""
    text = re.sub(r"-{2,}", "--", text)
    words, end = [], 0
    for match in NUMBER.finditer(text):
        words += [text[end : match.start()], match[0]]
        end = match.end()
    words.append(text[end:])
    return [" ".join(word.split()) for word in words]


def _alike(word: str, other: str) -> bool:
    if not (NUMBER.fullmatch(word) and NUMBER.fullmatch(other)):
        return word == other
    one, two = (float(each.replace(",", "")) for each in (word, other))
    if "," in word or "," in other:  # a count of parameters or rows
        return one == two
    if "e-" in word + other and "e" in word and "e" in other:
        # A rounding error of float32: it may be smaller, or none, on another processor.
        return abs(two) <= max(10 * abs(one), 1e-6)
    if "." in word and "e" not in word:  # of a training that other processors round otherwise
        return abs(one - two) <= 0.03 + 0.05 * abs(one)
    return abs(one - two) <= 0.01 * abs(one)
