"""Times a language model's greedy answers in JAX and in PyTorch, interleaved in one process.

    python train/generation_against_torch.py --model smollm2-135m --rows 1 8 --methods goat

The weights are random, in the real shapes and in float32. Each prompt has --prompt tokens and gets
--new tokens as its answer. PyTorch answers with transformers' ``generate`` and its cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from goat_jax.bench.turns import machine_line, random_like, take_turns
from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.errors import UserError
from goat_jax.evaluation.sampler import Generator, Sampling
from goat_jax.models.decoder.model import Decoder
from goat_jax.models.known_sizes import model_config, transformers_config
from goat_jax.models.load import random_model
from goat_jax.nn.dense import merge_model
from goat_jax.text_tables import render_table
from goat_jax.training.abstract_run import abstract_run
from goat_jax.validation.checks import check_number


def decoder(made: nnx.Module, model: str) -> Decoder:
    """Returns a model of these sizes if it generates text.

    Raises:
        UserError: a model of another kind.
    """
    if not isinstance(made, Decoder):
        raise UserError(f"--model {model}: not a language model, so it generates no text")
    return made


def adapted(model: str, method: str) -> Decoder:
    """Returns the model with a method's adapters on every linear layer and random weights."""
    task = language_files("none.jsonl", "none.jsonl")
    run = abstract_run(
        RunConfig(ModelConfig(model), task, AdapterConfig(method, modules_to_save=()))
    )
    leaves, structure = jax.tree.flatten((run.state.trainable, run.state.frozen(run.base)))
    numbers = [random_like(leaf, seed) for seed, leaf in enumerate(leaves)]
    return decoder(merge_model(run.graph, *jax.tree.unflatten(structure, numbers)), model)


def jax_answers(model: Decoder, prompts: np.ndarray, new: int) -> Callable[[], Any]:
    """Returns a function that generates `new` tokens per prompt and passes each to the host."""
    no_texts: Any = SimpleNamespace(eos_token_id=None)  # prompts and answers are token ids
    generator, sampling = Generator(model, no_texts, apart=True), Sampling(max_new_tokens=new)
    # Random weights may choose any token, the end of the text too, which would shorten an answer.
    generator.end_ids = ()
    rows = prompts.tolist()
    return lambda: [len(tokens) for tokens in generator.tokens(rows, sampling)]


def torch_answers(model: str, prompts: np.ndarray, new: int) -> Callable[[], Any]:
    """Returns a function that generates `new` greedy tokens per prompt with transformers."""
    import transformers

    config = transformers_config(model)
    try:
        made = transformers.AutoModelForCausalLM.from_config(config).eval()
    except ValueError as error:  # such as an encoder
        reason = str(error).splitlines()[0]
        raise UserError(f"--model {model}: no language model of transformers ({reason})") from None
    ids = torch.from_numpy(prompts)
    settings = {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new}

    def answer() -> int:
        with torch.inference_mode():
            found = made.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return found.shape[1]

    return answer


def main(arguments: Sequence[str] | None = None) -> int:
    return in_one_line("generation_against_torch", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="generation_against_torch",
        description="Greedy answers in JAX and PyTorch",
    )
    parser.add_argument("--model", default="smollm2-135m", help="model whose sizes are used")
    parser.add_argument("--methods", nargs="+", default=["goat"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="prompts per batch")
    parser.add_argument("--prompt", type=int, default=32, metavar="TOKENS")
    parser.add_argument("--new", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args(arguments)
    check_number("--prompt", options.prompt, at_least=1, whole=True)
    check_number("--new", options.new, at_least=1, whole=True)
    check_number("--turns", options.turns, at_least=1, whole=True)
    for rows in options.rows:
        check_number("--rows", rows, at_least=1, whole=True)
    plain = random_model(model_config(options.model), key=jax.random.key(0)).model
    models = {"jax": decoder(plain, options.model)} | {
        f"jax {m}": adapted(options.model, m) for m in options.methods
    }
    print(machine_line())
    for rows in options.rows:
        prompts = np.random.default_rng(0).integers(3, 1000, (rows, options.prompt))
        answers = {name: jax_answers(model, prompts, options.new) for name, model in models.items()}
        answers["torch"] = torch_answers(options.model, prompts, options.new)
        times = take_turns(answers, options.turns)
        print(f"\n{rows} prompts of {options.prompt} tokens, {options.new} new ones each\n")
        headers = ["model", "tokens/s", *(f"time over {name}" for name in times)]
        table = [
            [
                name,
                f"{rows * options.new / t.median:.1f}",
                *(f"{t.over(o):.3f}" for o in times.values()),
            ]
            for name, t in times.items()
        ]
        print(render_table(headers, table, markdown=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
