"""``goat-jax``: the command line. Each verb reads its arguments here and calls the library."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from goat_jax import __version__
from goat_jax.cli.arguments import common as arguments
from goat_jax.cli.arguments import evaluation as eval_arguments
from goat_jax.cli.arguments.words import as_flag, check_all_known, check_verb
from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.errors import UnknownField, UserError
from goat_jax.files import cache_folder, report_unusable_cache

STOPPED_BY_SIGNAL = 143


def main(words: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0, 1 (failed or out of tolerance) or 2 (bad input)."""
    return in_one_line("goat-jax", lambda: _run(words))


def _run(words: Sequence[str] | None) -> int:
    given = sys.argv[1:] if words is None else words
    check_verb(given, list(VERBS))
    known, rest = _parser().parse_known_args(given)
    if not known.takes_fields:
        check_all_known(known.parser, rest)
    try:
        return known.run(known, rest)
    except UnknownField as error:
        has_config = getattr(known, "config", None) is not None
        raise as_flag(error, known.parser, rest, has_config) from None


def _parser() -> argparse.ArgumentParser:
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
    return parser


def _keep_compiled() -> None:
    """Turns on jax's persistent compilation cache, so that a later start compiles less.

    The user's settings win: a cache folder set for jax is kept, and
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    import jax

    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None:
        return
    folder = cache_folder("compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        report_unusable_cache(folder, error)
        if not folder.is_dir():  # a read-only cache still helps
            return
    # jax compiles an entry that it cannot read, with a warning of two lines each time.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    settings.update("jax_compilation_cache_dir", str(folder))


def _plan(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.plan import plan

    return plan(
        options.config,
        rest,
        options.topology,
        chip=options.chip,
        largest=options.largest_batch,
        as_json=options.json,
    )


def _plot(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.plot import Choice, plot

    choice = Choice(options.step, options.text, options.image, options.row, options.records_only)
    for folder in options.folders:
        print(plot(folder, choice))
    return 0


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    if options.coordinator:
        from goat_jax.training.distributed.processes import Processes, as_one

        place = Processes(options.coordinator, options.processes, options.process)
        train = partial(in_one_line, "goat-jax", partial(_train_here, options, rest))
        return as_one(place, train)
    if options.processes is not None or options.process is not None:
        raise UserError("--processes and --process need --coordinator HOST:PORT")
    return _train_here(options, rest)


def _train_here(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.train import Start, train

    start = Start(
        options.config,
        options.run_folder,
        options.model,
        options.data,
        options.held_out,
        options.epochs,
    )
    if options.help_fields:
        rest = ["--help"]
    _keep_compiled()
    return train(start, rest, progress=not options.quiet, cache=cache_folder())


def _init(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.init import init
    from goat_jax.config.guess import EPOCHS

    epochs = EPOCHS if options.epochs is None else options.epochs
    return init(options.file, options.model, options.data, options.held_out, epochs, rest)


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.export import export

    return export(
        options.run_folder,
        options.to,
        options.out,
        step=options.step,
        task=options.task_id,
        rows=options.rows,
        dtype=options.dtype,
        as_json=options.json,
    )


def _import(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.import_adapter import import_adapter

    return import_adapter(options.source, options.config, rest, options.other_base)


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.evaluate import evaluate

    _keep_compiled()
    return evaluate(options)


def _predict(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.predict import predict

    _keep_compiled()
    return predict(options)


def _generate(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.generate import generate
    from goat_jax.evaluation.sampler import Sampling
    from goat_jax.sharding.config import MeshConfig

    _keep_compiled()
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
        stop=tuple(options.stop),
        seed=options.seed,
    )
    return generate(
        options.source,
        options.prompt,
        options.prompts,
        sampling,
        chat=options.chat,
        step=options.step,
        mesh=MeshConfig(tensor=options.tensor),
        as_json=options.json,
    )


def _data(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.data import list_sets, prepare_set

    if options.what == "list":
        return list_sets()
    if options.task is None:
        raise UserError("data prepare needs a task: goat-jax data list shows the tasks")
    return prepare_set(options.task, options.out, options.archives, not options.quiet)


def _parity(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.parity.report import main as parity

    return parity(options.folders, options.json)


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.compare import compare

    return compare(
        options.config,
        options.methods,
        options.seeds,
        options.rates,
        rest,
        equal=options.equal,
        runs_per_step=options.runs_per_step,
        out=options.out,
    )


def _sweep(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.sweep import sweep

    return sweep(
        options.config,
        options.over,
        rest,
        draws=options.random,
        drawn_by=options.draw,
        seeds=options.seeds,
        runs_per_step=options.runs_per_step,
        out=options.out,
    )


def _bench(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.bench import bench

    return bench(options, rest)


def _methods(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.methods import methods

    return methods(options.model)


def _inspect(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.inspect import inspect, inspect_config

    if (options.folder is None) == (options.config is None):
        raise UserError("inspect takes a run folder or --config FILE: give one of them")
    if options.config is not None:
        return inspect_config(options.config, options.model)
    return inspect(options.folder)


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
        _train,
        arguments.train,
        "Fine-tune a model; a run that exists in the output folder is continued.",
        "goat-jax train --model FacebookAI/roberta-base --data reviews.csv\n"
        "         goat-jax train --config glue:task=rte --model.path roberta-large\n"
        "         --optimizer.learning-rate 1e-4        (--help-fields lists every field)",
        overrides=True,
    ),
    "init": Verb(
        _init,
        arguments.init,
        "Write the config file of the run that a model and data give, to change it by hand.",
        "goat-jax init my_run.py --model FacebookAI/roberta-base --data reviews.csv",
        overrides=True,
    ),
    "evaluate": Verb(
        _evaluate,
        eval_arguments.add,
        "Score a run's best (or any) checkpoint on its task, or any language model on eval tasks.",
        "goat-jax evaluate runs/demo --step 150\n"
        "         goat-jax evaluate runs/commonsense --task arc_easy:folder=data/commonsense\n"
        "         goat-jax evaluate package:smollm2 --scoring likelihood --limit 200 \\\n"
        "             --task obqa:folder=data/commonsense,cloze=true",
    ),
    "predict": Verb(
        _predict,
        arguments.predict,
        "Predict with a run for rows without labels: labels and probabilities, values, or answers.",
        "goat-jax predict runs/demo --data new.csv --out predictions.csv\n"
        '         goat-jax predict runs/demo --text "A warm, sharp film."',
    ),
    "generate": Verb(
        _generate,
        arguments.generate,
        "Answer prompts with a run's best (or any) checkpoint, or with a pretrained model.",
        "goat-jax generate runs/gsm8k --prompts questions.jsonl --max-new-tokens 200\n"
        '         goat-jax generate package:smollm2 --chat --prompt "What is JAX?"',
    ),
    "data": Verb(
        _data,
        arguments.data,
        "Prepare a task's data set (download, check, convert), or list all data sets.",
        "goat-jax data prepare dtd --out data\n         goat-jax data list",
    ),
    "parity": Verb(
        _parity,
        arguments.parity,
        "Replay parity bundles written with PyTorch and compare every number.",
        "goat-jax parity ../shared/golden",
    ),
    "export": Verb(
        _export,
        arguments.export,
        "Write a run's adapter for PEFT or the published GOAT code, or the model with it merged "
        "in.",
        "goat-jax export runs/demo --to goat runs/demo-goat\n"
        "         goat-jax export runs/demo --to lora runs/demo-lora   (routed ones as one LoRA)",
    ),
    "import": Verb(
        _import,
        arguments.import_adapter,
        "Make a run from an existing adapter: to evaluate, generate, train further or export.",
        "goat-jax import path/to/peft --config glue:task=rte --out runs/imported\n"
        "         --model.path roberta-large        (any field of train)",
        overrides=True,
    ),
    "compare": Verb(
        _compare,
        arguments.compare,
        "Train several methods on one task with several seeds; writes one table and one figure.",
        "goat-jax compare --config demo --methods goat,molora,lora --seeds 0 1 2\n"
        '         goat-jax compare --config demo --methods goat "goat:rho=5"\n'
        "         --train.steps 50        (any field of train)",
        overrides=True,
    ),
    "sweep": Verb(
        _sweep,
        arguments.sweep,
        "Train one config over a grid or random points; writes one table and one figure.",
        "goat-jax sweep --config demo --over adapter.rho=1,5,10 \\\n"
        "             optimizer.learning-rate=1e-3,5e-3 --runs-per-step 2 --train.steps 50\n"
        "         goat-jax sweep --config demo --random 8 \\\n"
        "             --over optimizer.learning-rate=1e-4..1e-2:log adapter.total-rank=8,16,32",
        overrides=True,
    ),
    "bench": Verb(
        _bench,
        arguments.bench,
        "Measure what adapters cost on this device: one layer, training steps, or growth.",
        "goat-jax bench layer --dtype bfloat16\n"
        "         goat-jax bench step --config gsm8k --model smollm2-135m \\\n"
        "             --methods lora goat full --train.batch-size 4\n"
        "         goat-jax bench growth --methods goat --out runs/growth",
        overrides=True,
    ),
    "methods": Verb(
        _methods,
        arguments.methods,
        "List every method with its parts, or the number of parameters each trains in a model.",
        "goat-jax methods --model llama-2-7b",
    ),
    "inspect": Verb(
        _inspect,
        arguments.inspect,
        "Show a run's trained modules, singular spectra, expert load and scores, or what a config\n"
        "would train (without weights).",
        "goat-jax inspect runs/demo\n"
        "         goat-jax inspect --config glue:task=rte --model roberta-large",
    ),
    "plot": Verb(
        _plot,
        arguments.plot,
        "Draw a run: losses, expert load, router entropy, which expert a token goes to, spectra,\n"
        "updates; PNG files and one page, RUN/report.html, that opens offline.",
        'goat-jax plot runs/demo --text "A warm, sharp film about nothing"\n'
        "         goat-jax plot runs/a runs/b --records-only",
    ),
    "plan": Verb(
        _plan,
        arguments.plan,
        "Compile a run's training step for devices you need not have; loads no weights.",
        "goat-jax plan --config gsm8k --topology cpu:16 --chip v5e\n"
        "         --model.path llama-2-7b --model.dtype bfloat16        (any field of train)",
        overrides=True,
    ),
}


if __name__ == "__main__":
    sys.exit(main())
