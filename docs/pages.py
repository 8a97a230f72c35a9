"""Pages of the site that nobody writes: notebooks with their outputs, the command line's help."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MADE = HERE / "made"
"""The folder of the written pages; git ignores it."""


def write_all(app: Any) -> None:
    """Writes all of them, each only if it has changed."""
    del app
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        stem = notebook.stem
        _write(MADE / f"{stem}.md", notebook_page(json.loads(notebook.read_text("utf-8")), stem))
    _write(MADE / "commands.md", command_page())


def _write(path: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(exist_ok=True)
    if not path.is_file() or path.read_bytes() != data:
        path.write_bytes(data)


def notebook_page(notebook: dict[str, Any], stem: str) -> str:
    """A notebook as Markdown: prose, code, and what the code printed or drew."""
    parts = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += _outputs(cell, f"{stem}-{number}")
    note = f"*This page is the notebook [{stem}.ipynb](../../notebooks/{stem}.ipynb).*"
    return "\n\n".join([*parts, note]) + "\n"


def _outputs(cell: dict[str, Any], name: str) -> Iterator[str]:
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            _write(MADE / f"{name}.png", base64.b64decode("".join(data["image/png"])))
            yield f"![What the cell above drew]({name}.png)"
        else:
            text = "".join(output.get("text") or data.get("text/plain", ""))
            yield f"```text\n{text.rstrip()}\n```"


def command_page() -> str:
    """``--help`` of ``goat-jax`` and of each of its verbs."""
    top = _help()
    verbs = re.findall(r"^    (\w+) ", top, flags=re.M)
    parts = ["# Command line", f"```text\n{top.rstrip()}\n```"]
    for verb in verbs:
        parts += [f"## {verb}", f"```text\n{_help(verb).rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _help(*verb: str) -> str:
    from goat_jax.cli.main import main

    said = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"  # argparse asks for the terminal's width
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*verb, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {} if before is None else {"COLUMNS": before}
    return said.getvalue()


def inline_math(translator: Any, node: Any) -> None:
    """A formula as MathML, which browsers draw themselves, without a network."""
    _math(translator, node, as_block=False)


def block_math(translator: Any, node: Any) -> None:
    """A displayed formula as MathML."""
    _math(translator, node, as_block=True)


def _math(translator: Any, node: Any, as_block: bool) -> None:
    from docutils.nodes import SkipNode
    from docutils.utils.math import latex2mathml

    found = latex2mathml.tex2mathml(node.astext(), as_block=as_block)
    translator.body.append(f'<div class="math">{found}</div>' if as_block else found)
    raise SkipNode


def one_name_each(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Gives ``before, after: text`` of an attribute list two lines; napoleon reads one name."""
    del app, what, name, obj, options
    found: list[str] = []
    names: list[str] = []
    text: list[str] = []

    def flush() -> None:
        for each in names:
            found.extend([f"    {each}:{text[0]}", *text[1:]])
        names.clear()
        text.clear()

    inside = False
    for line in lines:
        entry = re.match(r"    (\w+(?:, \w+)+):( .*)$", line)
        if entry and inside:
            flush()
            names, text = entry[1].split(", "), [entry[2]]
        elif names and line.startswith("     "):
            text.append(line)
        else:
            flush()
            found.append(line)
        inside = line.startswith("Attributes:") or (inside and (not line or line[0] == " "))
    flush()
    lines[:] = found


def readable_defaults(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: Any
) -> Any:
    """Names functions that are defaults, and leaves out what has no text that is Python."""
    del app, what, name, obj, options
    if signature is None:
        return None
    named = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", signature)
    return re.sub(r"=\s*<[^>]*>", " = ...", named), returned


def skip_twice(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> Any:
    """Leaves out of a module's page what `goat_jax` itself offers, and what named tuples add."""
    del app, options
    import goat_jax

    public = [getattr(goat_jax, each) for each in goat_jax.__all__]
    if what == "module" and any(obj is each for each in public):
        return True
    own = getattr(obj, "__doc__", None) or ""
    return True if own.startswith("Alias for field number") else skip


def link_names(app: Any, doctree: Any, page: str) -> None:
    """Makes a link of every ``goat_jax.a.b`` in code style that the reference has an entry for."""
    from docutils import nodes

    entries = app.env.get_domain("py").objects
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext()
        if name.startswith("goat_jax.") and name in entries:
            entry = entries[name]
            place = app.builder.get_relative_uri(page, entry.docname)
            link = nodes.reference("", "", refuri=f"{place}#{entry.node_id}", internal=True)
            literal.replace_self(link)
            link += literal


def check_reference(app: Any, env: Any) -> None:
    """Warns (an error, with -W) of public names without an entry in the reference."""
    del app
    from sphinx.util import logging

    import goat_jax

    entries = env.get_domain("py").objects
    for name in goat_jax.__all__:
        if f"goat_jax.{name}" not in entries:
            logging.getLogger(__name__).warning("%s is public and not in docs/reference", name)
