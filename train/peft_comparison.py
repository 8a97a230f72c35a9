"""PEFT's method comparison on MetaMathQA and GSM8K, with the methods of this library.

    python train/peft_comparison.py --methods lora goat molora@32:top_k=1 --wiki wiki.jsonl \\
        --options folder=data/MetaMathQA,questions=data/gsm8k --model.path path/to/Llama-3.2-3B
    python train/peft_comparison.py --beside path/to/peft/method_comparison/MetaMathQA/results

Trains what is not finished, measures test accuracy and forgetting, and writes one result file for
each method with PEFT's fields to runs/peft/results. The table shows these and PEFT's own files.
Forgetting is the rise of the loss per token on texts: PEFT takes the first 100 of
HuggingFaceFW/finewiki, cut to 768 tokens. --wiki names a source of such rows with a column "text".
"""

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from goat_jax.cli.arguments.config import override, with_adapter
from goat_jax.cli.arguments.evaluation import add_options, options_of
from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.config.files import load_config
from goat_jax.config.run import RunConfig
from goat_jax.data.sources.read import read_source
from goat_jax.data.sources.text_fields import read_text
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.evaluation.model import load_eval_model
from goat_jax.evaluation.types import EvalOptions
from goat_jax.files import write_whole
from goat_jax.training.checkpoints.run_dir import RESULT
from goat_jax.training.logging.metrics_log import read_records
from reproduction.labels import Label, read_label
from reproduction.measures import trained_scores
from reproduction.peft_results import beside, result_file

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "metamathqa.py"
TEXTS, TOKENS = 100, 768
"""Number of texts that forgetting is measured on, and of each text's tokens."""


def main(arguments: Sequence[str] | None = None) -> int:
    return in_one_line("peft_comparison", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    given, overrides = _parser().parse_known_args(arguments)
    labels = [read_label(text) for text in given.methods]
    options, texts = options_of(given), wiki_texts(given.wiki) if given.wiki else []
    configs = [config_of(label, given.options, overrides, given.out) for label in labels]
    results = given.out / "results"
    for label, config in zip(labels, configs, strict=True):
        path = results / f"{label.name}.json"
        if not run(label, config, options, texts, path, not given.quiet):
            print(f"stopped in {label.name}; the same command continues", file=sys.stderr)
            return 143
    files = [*results.glob("*.json"), *(given.beside.glob("*.json") if given.beside else ())]
    print(beside(files) if files else "no results yet: name --methods")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="peft_comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="METHOD")
    parser.add_argument("--options", default="", metavar="OPTION=VALUE,...")
    parser.add_argument("--wiki", metavar="SOURCE", help="texts to measure forgetting on")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="PEFT's result files")
    parser.add_argument("--out", type=Path, default=Path("runs/peft"), metavar="FOLDER")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_options(parser)
    return parser


def wiki_texts(source: str) -> list[str]:
    """Returns the first texts of a source of rows with a column "text"."""
    rows = read_source(source, "train", None)
    return [read_text(rows[number], "text") for number in range(min(TEXTS, len(rows)))]


def config_of(label: Label, options: str, overrides: Sequence[str], out: Path) -> RunConfig:
    """Returns the config of one method's run."""
    source = f"{CONFIG}:{label.options}" + (f",{options}" if options else "")
    config = override(load_config(source), overrides, "peft_comparison")
    config = with_adapter(config, label.adapter)
    return dataclasses.replace(config, out=str(out / label.name))


def run(
    label: Label,
    config: RunConfig,
    options: EvalOptions,
    texts: Sequence[str],
    path: Path,
    progress: bool,
) -> bool:
    """Trains and measures one method, and writes its result file unless there is one.

    Returns:
        False if the run was stopped.
    """
    folder = Path(config.out)
    finished = (folder / RESULT).is_file() and path.is_file()
    started, before = datetime.datetime.now(datetime.UTC), time.perf_counter()
    scores = trained_scores(config, options, progress)
    if scores is None or finished:
        return scores is not None
    scores = dict(scores)
    model = load_eval_model(str(folder), config.train.total_steps)
    if texts:
        base = load_eval_model(config.model.path, dtype=config.model.dtype)
        batch = config.train.batch_size
        losses = [each.scorer().mean_loss(texts, TOKENS, batch) for each in (base, model)]
        scores["forgetting"] = losses[1] - losses[0]
    trained = sum(leaf.size for leaf in jax.tree.leaves(model.trainable))
    assert isinstance(config.task, EvalTask)
    new_tokens = options.max_new_tokens or config.task.max_new_tokens
    content = result_file(
        dataclasses.replace(
            config, task=dataclasses.replace(config.task, max_new_tokens=new_tokens)
        ),
        read_records(folder),
        scores,
        name=f"{label.method}/{Path(config.model.path).name}-{label.name}",
        created=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - before,
        trained=trained,
        total=trained + sum(leaf.size for leaf in jax.tree.leaves(model.base)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2) + "\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
