"""The page about serving: its commands and its Python, with the real server and the real client."""

import importlib.util
import json
import re
import shlex
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import goat_jax
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.data.tasks.registry import language_files
from goat_jax.errors import UserError
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.pretrained.packaged_models import smollm2_file
from goat_jax.training.trainer import begin
from ports import free_port
from tiny_language import COLOURS, write_model
from tiny_tokenizers import TEMPLATES
from trained import trained_elsewhere

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
FENCED = re.compile(r"^```python\n(.*?)```$", flags=re.S | re.M)
PORT = "8000"
SERVING = "needs pip install 'transformers[serving]'"
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


@contextmanager
def serving(words):
    """Runs `transformers` with these words and a free port, which it yields, and stops it."""
    port = free_port()
    words = [str(port) if word == PORT else word for word in words]
    if "--port" not in words:
        words += ["--port", str(port)]
    command = [sys.executable, "-m", "transformers.cli.transformers", *words]
    with Path("server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not answers(port):
            assert server.poll() is None, Path("server.log").read_text()
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()


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

    with serving(serve[1:]) as port:
        found = printed("-c", FENCED.findall(text)[0].replace(PORT, str(port)))
    assert found == expected


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_eight_requests_at_once_get_the_run_s_answers(tmp_path, monkeypatch):
    openai = pytest.importorskip("openai", reason=SERVING)
    pytest.importorskip("fastapi", reason=SERVING)
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    tokenizer: Any = load_tokenizer(tmp_path / "model")
    tokenizer.chat_template = TEMPLATES["chatml"]
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "the sky is", "completion": "blue"}\n' * 24)
    config = RunConfig(
        ModelConfig("model"),
        language_files("rows.jsonl", "rows.jsonl"),
        AdapterConfig("lora", total_rank=8, modules_to_save=()),
        OptimizerConfig(warmup_steps=0),
        TrainConfig(steps=2, batch_size=2, eval_batch_size=2, max_length=16),
        out="run",
    )
    run = goat_jax.load(begin(config, trained_elsewhere).folder)
    run.export("merged", "merged")
    prompts = [f"what is the {thing} ?" for thing in COLOURS]
    prompts += [f"the {thing} is" for thing in list(COLOURS)[:3]]
    expected = run.generate(prompts, chat=True, max_new_tokens=6)
    assert len(set(expected)) > 1

    with serving(["serve", "merged", "--device", "cpu", "--dtype", "float32"]) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")

        def ask(prompt):
            reply = client.chat.completions.create(
                model="merged",
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=6,
            )
            return reply.choices[0].message.content

        with ThreadPoolExecutor(len(prompts)) as together:
            found = list(together.map(ask, prompts))
    assert [text.split() for text in found] == [text.split() for text in expected]
