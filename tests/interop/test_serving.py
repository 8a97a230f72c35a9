"""The page about serving: its commands and its Python, with the real server and the real client."""

import importlib.util
import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from goat_jax.errors import UserError
from goat_jax.pretrained.packaged_models import smollm2_file
from ports import free_port

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
FENCED = re.compile(r"^```python\n(.*?)```$", flags=re.S | re.M)
PORT = "8000"
NEEDED = ("fastapi", "uvicorn", "openai")
CITIES = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid"}


def write_chats(path):
    rows = [
        [("user", f"What is the capital of {country}?"), ("assistant", f"{city}, of course.")]
        for country, city in CITIES.items()
    ]
    chats = ({"messages": [{"role": r, "content": c} for r, c in row]} for row in rows)
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))


def answers(port):
    with socket.socket() as it:
        return it.connect_ex(("127.0.0.1", port)) == 0


def printed(*words, env=None):
    """Returns the output of a Python program."""
    command = [sys.executable, *words]
    return subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=env
    ).stdout.strip()


@pytest.mark.nightly
def test_the_commands_and_the_python_of_the_page(tmp_path, monkeypatch, without_torch):
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'transformers[serving]'")
    try:
        smollm2_file()
    except UserError as error:
        pytest.skip(str(error))
    text = PAGE.read_text(encoding="utf-8")
    lines = re.findall(r"^    (.+)$", FENCED.sub("", text), flags=re.M)
    typed = [shlex.split(line) for line in lines]
    ours = [words[1:] for words in typed if words[0] == "goat-jax"]
    (serve,) = (words for words in typed if words[0] == "transformers")
    assert [words[0] for words in ours] == ["train", "export", "generate"]

    write_chats(tmp_path / "chats.jsonl")
    monkeypatch.chdir(tmp_path)
    # With LLVM's optimizations, which other tests leave out: this model is not tiny.
    usual = without_torch | {"XLA_FLAGS": ""}
    *_, expected = (printed("-m", "goat_jax", *words, env=usual) for words in ours)
    assert expected

    port = free_port()
    words = [str(port) if word == PORT else word for word in serve[1:]]
    command = [sys.executable, "-m", "transformers.cli.transformers", *words]
    client = FENCED.findall(text)[0].replace(PORT, str(port))
    with Path("server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not answers(port):
            assert server.poll() is None, Path("server.log").read_text()
            time.sleep(0.2)
        found = printed("-c", client)
    finally:
        server.terminate()
        server.wait()
    assert found == expected
