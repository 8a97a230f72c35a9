"""The site's pages: links lead somewhere, code names exist, every public name has an entry."""

import functools
import importlib
import json
import re
from pathlib import Path

import pytest

import goat_jax
from goat_jax.adapters.methods import METHODS
from goat_jax.cli.parser import VERBS
from goat_jax.config.shipped import shipped_configs

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "docs/reference/*.md") for path in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```.*?^```$", flags=re.S | re.M)


def prose(path: Path) -> str:
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """Makes the anchor of a heading as GitHub and MyST do."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(found) for found in re.findall(r"^#+ (.+)$", prose(path), flags=re.M)}


def exists(name: str) -> bool:
    """Returns True if there is a module of this name, or something of this name in a module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        missing = object()
        found = functools.reduce(lambda o, n: getattr(o, n, missing), parts[length:], module)
        if found is not missing:
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.is_file(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: no heading {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_in_the_text_exist(page):
    for name in re.findall(r"`(goat_jax\.[\w.]+)`", prose(page)):
        assert exists(name), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_configs_in_the_commands_exist(page):
    known = {*shipped_configs(), *(f"configs/{name}.py" for name in shipped_configs())}
    for name in re.findall(r"--config \"?([\w./]+)", page.read_text(encoding="utf-8")):
        assert name in {*known, "FILE", "FILE.py", "my_run.py"}, f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_methods_in_the_commands_exist(page):
    check_methods(page.read_text(encoding="utf-8"))


def test_methods_in_the_examples_of_the_help_exist():
    for verb in VERBS.values():
        check_methods(verb.example)


def check_methods(text):
    """Every ``--methods A B,C`` names methods, each possibly with its options."""
    lines = text.replace("\\\n", " ")
    for words in re.findall(r"--methods((?: +\"?[a-z]\S*)+)", lines):
        for typed in words.replace('"', "").split():
            for word in [typed] if ":" in typed else typed.split(","):  # as `compare` reads them
                assert word.partition(":")[0] in METHODS, f"{word} is not a method"


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\.\. [\w:]+:: goat_jax\.(\w+)$", text, flags=re.M)
    assert sorted(entries) == sorted(goat_jax.__all__)


def test_the_reference_names_modules_that_exist():
    for page in (DOCS / "reference").glob("*.md"):
        for name in re.findall(r"^\.\. \w+:: (goat_jax[\w.]+)$", page.read_text(), flags=re.M):
            assert exists(name), name


def test_notebooks_and_their_page_name_each_other():
    listed = re.findall(r"\.\./notebooks/(\S+?\.ipynb)", (DOCS / "notebooks.md").read_text())
    assert listed == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_kept_small_and_say_nothing_of_the_machine(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in code), "run it and keep the outputs"
    pictures = 0
    for output in [output for cell in code for output in cell["outputs"]]:
        assert output["output_type"] != "error" and output.get("name") != "stderr"
        picture = output.get("data", {}).pop("image/png", "")
        pictures += bool(picture)
        assert len(picture) < 80_000  # base64 of 60 KB
        assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|usr)\b", json.dumps(output))
    assert pictures <= 1
