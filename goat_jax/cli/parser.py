"""`VERBS`: the verbs of the command line, each with its arguments, help and example; and their
parser."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

from goat_jax import __version__
from goat_jax.cli import calls
from goat_jax.cli.arguments import common as arguments
from goat_jax.cli.arguments import evaluation as eval_arguments
from goat_jax.cli.entry import Parser
from goat_jax.cli.log_level import LEVELS


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    Attributes:
        run: (the parsed arguments, the remaining words) -> exit code.
        arguments: adds the verb's arguments to a parser.
        help: the description that ``--help`` shows.
        example: the example that ``--help`` shows.
        overrides: whether the remaining words may be fields of a config.
    """

    run: Callable[[argparse.Namespace, list[str]], int]
    arguments: Callable[[argparse.ArgumentParser], None]
    help: str
    example: str
    overrides: bool = False


VERBS = {
    "train": Verb(
        calls.run_train,
        arguments.train,
        "Fine-tune a model; a run that exists in the output folder is continued.",
        "goat-jax train --model FacebookAI/roberta-base --data reviews.csv\n"
        "         goat-jax train --config glue:task=rte --model.path roberta-large\n"
        "         --optimizer.learning-rate 1e-4        (--help-fields lists every field)",
        overrides=True,
    ),
    "init": Verb(
        calls.run_init,
        arguments.init,
        "Write the config file of the run that a model and data give, to change it by hand.",
        "goat-jax init my_run.py --model FacebookAI/roberta-base --data reviews.csv",
        overrides=True,
    ),
    "evaluate": Verb(
        calls.run_evaluate,
        eval_arguments.add,
        "Score a run's best (or any) checkpoint on its task, or any language model on eval tasks.",
        "goat-jax evaluate runs/demo --step 150\n"
        "         goat-jax evaluate runs/commonsense --task arc_easy:folder=data/commonsense\n"
        "         goat-jax evaluate package:smollm2 --scoring likelihood --limit 200 \\\n"
        "             --task obqa:folder=data/commonsense,cloze=true\n"
        "         goat-jax evaluate runs/chats --harness lm-eval --task arc_easy --limit 100",
    ),
    "predict": Verb(
        calls.run_predict,
        arguments.predict,
        "Predict with a run for rows without labels: labels and probabilities, values, or answers.",
        "goat-jax predict runs/demo --data new.csv --out predictions.csv\n"
        '         goat-jax predict runs/demo --text "A warm, sharp film."',
    ),
    "generate": Verb(
        calls.run_generate,
        arguments.generate,
        "Answer prompts with a run's best (or any) checkpoint, or with a pretrained model.",
        "goat-jax generate runs/gsm8k --prompts questions.jsonl --max-new-tokens 200\n"
        '         goat-jax generate package:smollm2 --chat --prompt "What is JAX?"',
    ),
    "data": Verb(
        calls.run_data,
        arguments.data,
        "Prepare a task's data set (download, check, convert), list all data sets, or write the\n"
        "training rows of a text task as a table.",
        "goat-jax data prepare dtd --out data\n         goat-jax data list\n"
        "         goat-jax data write reviews --rows 1500 --out reviews.csv",
    ),
    "parity": Verb(
        calls.run_parity,
        arguments.parity,
        "Replay parity bundles written with PyTorch and compare every number.",
        "goat-jax parity ../shared/golden",
    ),
    "export": Verb(
        calls.run_export,
        arguments.export,
        "Write a run's adapter for PEFT or the published GOAT code, or the model with it merged "
        "in.",
        "goat-jax export runs/demo --to goat runs/demo-goat\n"
        "         goat-jax export runs/demo --to lora runs/demo-lora   (routed ones as one LoRA)",
    ),
    "import": Verb(
        calls.run_import,
        arguments.import_adapter,
        "Make a run from an existing adapter: to evaluate, generate, train further or export.",
        "goat-jax import path/to/peft --config glue:task=rte --out runs/imported\n"
        "         --model.path roberta-large        (any field of train)",
        overrides=True,
    ),
    "compare": Verb(
        calls.run_compare,
        arguments.compare,
        "Train several methods on one task with several seeds; writes one table and one figure.",
        "goat-jax compare --config demo --methods goat,molora,lora --seeds 0 1 2\n"
        '         goat-jax compare --config demo --methods goat "goat:rho=5"\n'
        "         --train.steps 50        (any field of train)",
        overrides=True,
    ),
    "sweep": Verb(
        calls.run_sweep,
        arguments.sweep,
        "Train one config over a grid or random points; writes one table and one figure.",
        "goat-jax sweep --config demo --over adapter.rho=1,5,10 \\\n"
        "             optimizer.learning-rate=1e-3,5e-3 --runs-per-step 2 --train.steps 50\n"
        "         goat-jax sweep --config demo --random 8 \\\n"
        "             --over optimizer.learning-rate=1e-4..1e-2:log adapter.total-rank=8,16,32",
        overrides=True,
    ),
    "bench": Verb(
        calls.run_bench,
        arguments.bench,
        "Measure what adapters cost on this device: one layer, training steps, growth, or a suite.",
        "goat-jax bench layer --dtype bfloat16\n"
        "         goat-jax bench step --config gsm8k --model smollm2-135m \\\n"
        "             --methods lora goat full --train.batch-size 4\n"
        "         goat-jax bench growth --methods goat --out runs/growth\n"
        "         goat-jax bench accelerator --out runs/accelerator   (10 minutes)",
        overrides=True,
    ),
    "methods": Verb(
        calls.run_methods,
        arguments.methods,
        "List every method with its parts, or the number of parameters each trains in a model.",
        "goat-jax methods --model llama-2-7b",
    ),
    "inspect": Verb(
        calls.run_inspect,
        arguments.inspect,
        "Show a run's trained modules, singular spectra, expert load and scores, or what a config\n"
        "would train (without weights).",
        "goat-jax inspect runs/demo\n"
        "         goat-jax inspect --config glue:task=rte --model roberta-large",
    ),
    "plot": Verb(
        calls.run_plot,
        arguments.plot,
        "Draw a run: losses, expert load, router entropy, the expert of each token, spectra,\n"
        "updates; PNG files and one page, RUN/report.html, that opens offline.",
        'goat-jax plot runs/demo --text "A warm, sharp film about nothing"\n'
        "         goat-jax plot runs/a runs/b --records-only",
    ),
    "plan": Verb(
        calls.run_plan,
        arguments.plan,
        "Compile a run's training step for devices you need not have; loads no weights.",
        "goat-jax plan --config gsm8k --topology cpu:16 --chip v5e\n"
        "         --model.path llama-2-7b --model.dtype bfloat16        (any field of train)",
        overrides=True,
    ),
    "completion": Verb(
        calls.run_completion,
        arguments.completion,
        "Print the script with which a shell completes verbs, options, fields and names.",
        "goat-jax completion bash > ~/.local/share/bash-completion/completions/goat-jax\n"
        "         goat-jax completion fish > ~/.config/fish/completions/goat-jax.fish",
    ),
}


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all verbs."""
    parser = Parser(
        prog="goat-jax", description="Fine-tuning with mixtures of LoRA experts in JAX."
    )
    parser.add_argument("--version", action="version", version=f"goat-jax {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.help,
            description=verb.help,
            epilog=f"example: {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=verb.run, takes_fields=verb.overrides, parser=sub)
        verb.arguments(sub)
        sub.add_argument(
            "--log-level",
            choices=LEVELS,
            default="warning",
            help="how much is printed besides results; debug: also the traceback of an error",
        )
    return parser
