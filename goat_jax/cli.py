"""``goat-jax``: the one door. Each verb reads its arguments here and calls the library."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from goat_jax.commands import bench_arguments, exam_arguments, sweep_arguments
from goat_jax.errors import RunFailed, UserError

STOPPED_BY_SIGNAL = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0, 1 (failed or out of tolerance) or 2 (bad input)."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what orbax logs, it also raises
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    if rest and not known.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return known.run(known, rest)
    except UserError as error:
        return _say(error, 2)
    except RunFailed as error:
        return _say(error, 1)
    except OSError as error:
        # A full disk, a missing permission: nothing is half-written, files are renamed when whole.
        return _say(f"{error.strerror or error}: {error.filename or 'while writing'}", 1)


def _say(error: object, code: int) -> int:
    print(f"goat-jax: error: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="goat-jax", description="Fine-tuning with mixtures of LoRA experts in JAX."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[..., int], help_: str, example: str, overrides: bool = False
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=help_,
            description=help_,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, takes_overrides=overrides)
        return sub

    train = verb(
        "train",
        _train,
        "Fine-tune; continues by itself a run that was begun in the same folder.",
        "goat-jax train --config configs/glue.py:task=rte,method=goat --model.path roberta-large\n"
        "         --optimizer.learning-rate 1e-4        (--help-fields lists every field)",
        overrides=True,
    )
    train.add_argument("--config", metavar="FILE[:OPT=V,...]")
    train.add_argument(
        "--run",
        dest="run_folder",
        metavar="RUN",
        type=Path,
        help="go on with this run, by its own config",
    )
    train.add_argument("--help-fields", action="store_true", help="list every field and stop")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.add_argument(
        "--coordinator",
        metavar="HOST:PORT|auto",
        help="one process of several: where the first listens; auto on SLURM and TPU pods",
    )
    train.add_argument("--processes", type=int, metavar="N", help="how many there are")
    train.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")

    evaluate = verb(
        "evaluate",
        _evaluate,
        "Score a run's best (or any) checkpoint on its task, or any language model on exams.",
        "goat-jax evaluate runs/demo --step 150\n"
        "         goat-jax evaluate runs/commonsense --task arc_easy:folder=data/commonsense\n"
        "         goat-jax evaluate package:smollm2 --how likelihood --limit 200 \\\n"
        "             --task obqa:folder=data/commonsense,cloze=true",
    )
    exam_arguments.add(evaluate)

    generate = verb(
        "generate",
        _generate,
        "Answer prompts with a run's best (or any) checkpoint, or with a pretrained model.",
        "goat-jax generate runs/gsm8k --prompts questions.jsonl --max-new-tokens 200\n"
        '         goat-jax generate package:smollm2 --chat --prompt "What is JAX?"',
    )
    generate.add_argument("source", metavar="RUN|MODEL", help="a run folder or a model")
    generate.add_argument("--prompt", action="append", default=[], metavar="TEXT")
    generate.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSONL with a column prompt, or a run's own"
    )
    generate.add_argument("--chat", action="store_true", help="wrap in the model's chat template")
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help="128 if there is room")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P")
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT")
    exam_arguments.add_tensor(generate)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--step", type=int, help="which checkpoint; the best if not given")
    generate.add_argument("--json", action="store_true", help="print JSON, a line a prompt")

    data = verb(
        "data",
        _data,
        "Make a task's data set (fetch, check, store for tensorflow_datasets), or list them all.",
        "goat-jax data prepare dtd --out data\n         goat-jax data list",
    )
    data.add_argument("what", choices=("list", "prepare"))
    data.add_argument("task", nargs="?", metavar="TASK")
    data.add_argument("--out", type=Path, metavar="FOLDER", help="of all sets; TFDS's if not given")
    data.add_argument(
        "--archives", type=Path, metavar="FOLDER", help="that has some of the files already"
    )
    data.add_argument("--quiet", action="store_true", help="no progress bar")

    parity = verb(
        "parity",
        _parity,
        "Replay parity bundles written with PyTorch and compare every number.",
        "goat-jax parity ../shared/golden",
    )
    parity.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    parity.add_argument("--json", action="store_true", help="print JSON")

    export = verb(
        "export",
        _export,
        "Write a run's adapter for PEFT or the published GOAT code, or merged into its model.",
        "goat-jax export runs/demo --to goat runs/demo-goat\n"
        "         goat-jax export runs/demo --to lora runs/demo-lora   (routed ones as one LoRA)",
    )
    export.add_argument("run_folder", metavar="RUN", type=Path)
    export.add_argument("out", metavar="OUT", type=Path, help="a folder that is not there yet")
    export.add_argument("--to", required=True, choices=("peft", "goat", "merged", "lora"))
    export.add_argument("--step", type=int, help="which checkpoint; the best if not given")
    export.add_argument("--task-id", type=int, metavar="N", help="the task of a task-gated adapter")
    export.add_argument(
        "--rows", type=int, default=256, metavar="N", help="training rows to measure gates on"
    )
    export.add_argument("--json", action="store_true", help="print JSON")
    take_in = verb(
        "import",
        _import,
        "Make a run of somebody's adapter: to evaluate, generate with, train on and export.",
        "goat-jax import path/to/peft --config configs/glue.py:task=rte --out runs/imported\n"
        "         --model.path roberta-large        (any field of train)",
        overrides=True,
    )
    take_in.add_argument("source", metavar="FOLDER", type=Path, help="PEFT, or published GOAT")
    take_in.add_argument("--config", required=True, metavar="FILE[:OPT=V,...]")

    compare = verb(
        "compare",
        _compare,
        "Train several methods on one task, with several seeds: one table, one figure.",
        "goat-jax compare --config configs/demo.py --methods goat,molora,lora --seeds 0 1 2\n"
        '         goat-jax compare --config configs/demo.py --methods goat "goat:rho=5"\n'
        "         --train.steps 50        (any field of train)",
        overrides=True,
    )
    compare.add_argument("--config", required=True, metavar="FILE[:OPT=V,...]")
    compare.add_argument("--methods", required=True, nargs="+", metavar="METHOD[:OPT=V,...]")
    compare.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    compare.add_argument("--rates", type=float, nargs="+", default=[], metavar="LEARNING_RATE")
    compare.add_argument(
        "--equal", choices=("rank", "parameters"), default="rank", help="what methods share"
    )
    compare.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="runs of a method in one step (memory!)"
    )
    compare.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="FOLDER")

    sweep = verb(
        "sweep",
        _sweep,
        "Train one config at many points, a grid or random ones: one table, one figure.",
        "goat-jax sweep --config configs/demo.py --over adapter.rho=1,5,10 \\\n"
        "             optimizer.learning-rate=1e-3,5e-3 --at-once 2 --train.steps 50\n"
        "         goat-jax sweep --config configs/demo.py --random 8 \\\n"
        "             --over optimizer.learning-rate=1e-4..1e-2:log adapter.total-rank=8,16,32",
        overrides=True,
    )
    sweep_arguments.add(sweep)

    bench = verb(
        "bench",
        _bench,
        "Measure what adapters cost on this device: a layer, whole steps, or how it grows.",
        "goat-jax bench layer --dtype bfloat16\n"
        "         goat-jax bench step --config configs/gsm8k.py --model smollm2-135m \\\n"
        "             --methods lora goat full_ft --train.batch-size 4\n"
        "         goat-jax bench growth --methods goat --out runs/growth",
        overrides=True,
    )
    bench_arguments.add(bench)

    methods = verb(
        "methods",
        _methods,
        "List every method with its parts, or what each trains of a model.",
        "goat-jax methods --model llama-2-7b",
    )
    methods.add_argument("--model", metavar="MODEL", help="its name or folder; no weights needed")
    inspect = verb(
        "inspect",
        _inspect,
        "Show a run: what is trained, singular spectra, expert load, scores. Or what a config\n"
        "would train, without weights.",
        "goat-jax inspect runs/demo\n"
        "         goat-jax inspect --config configs/glue.py:task=rte --model roberta-large",
    )
    inspect.add_argument("folder", metavar="RUN", type=Path, nargs="?")
    inspect.add_argument("--config", metavar="FILE[:OPT=V,...]")
    inspect.add_argument("--model", metavar="MODEL", help="another model than the config's")
    plot = verb(
        "plot",
        _plot,
        "Draw a run: losses, expert load, router entropy, which expert a token goes to, spectra,\n"
        "updates; PNG files and one page, RUN/report.html, that opens offline.",
        'goat-jax plot runs/demo --text "A warm, sharp film about nothing"\n'
        "         goat-jax plot runs/a runs/b --records-only",
    )
    plot.add_argument("folders", metavar="RUN", type=Path, nargs="+")
    plot.add_argument("--step", type=int, help="which checkpoint; the best if not given")
    plot.add_argument("--text", metavar="SENTENCE", help="whose tokens are followed")
    plot.add_argument("--image", metavar="FILE", type=Path, help="whose patches are followed")
    plot.add_argument(
        "--row", type=int, default=0, metavar="N", help="evaluation row, without text or image"
    )
    plot.add_argument(
        "--records-only", action="store_true", help="what metrics.jsonl holds; opens no model"
    )
    plan = verb(
        "plan",
        _plan,
        "Compile a run's training step for devices that are not there, without weights.",
        "goat-jax plan --config configs/gsm8k.py --topology cpu:16 --chip v5e\n"
        "         --model.path llama-2-7b --model.dtype bfloat16        (any field of train)",
        overrides=True,
    )
    plan.add_argument("--config", required=True, metavar="FILE[:OPT=V,...]")
    plan.add_argument("--topology", required=True, metavar="cpu:N|v5e:4x4")
    plan.add_argument("--chip", metavar="NAME", help="whose limits to reckon with, as v5e or h100")
    plan.add_argument("--largest-batch", action="store_true", help="also find it, by trying some")
    plan.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _cache_folder() -> Path:
    """Where this program may keep what it can compute again, by the XDG base directories."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "goat_jax"


def _keep_compiled() -> None:
    """Lets a later start take the programs that this one compiles, unless the user has said where
    jax keeps them (or JAX_ENABLE_COMPILATION_CACHE=false, that it does not)."""
    import jax

    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str(_cache_folder() / "compiled"))


def _plan(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.plan import plan

    return plan(
        options.config,
        rest,
        options.topology,
        chip=options.chip,
        largest=options.largest_batch,
        as_json=options.json,
    )


def _plot(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.plot import Choice, plot

    choice = Choice(options.step, options.text, options.image, options.row, options.records_only)
    for folder in options.folders:
        print(plot(folder, choice))
    return 0


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.train import train
    from goat_jax.run.processes import Processes, join

    if options.coordinator:
        join(Processes(options.coordinator, options.processes, options.process))
    elif options.processes is not None or options.process is not None:
        raise UserError("--processes and --process need --coordinator HOST:PORT")
    if (options.config is None) == (options.run_folder is None):
        raise UserError("train takes --config FILE, or --run RUN to go on: give one of them")
    if options.help_fields:
        rest = ["--help"]
    _keep_compiled()
    quiet, cache = options.quiet, _cache_folder()
    run = options.run_folder
    return train(options.config, rest, run=run, progress=not quiet, cache=cache)


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.export import export

    return export(
        options.run_folder,
        options.to,
        options.out,
        step=options.step,
        task=options.task_id,
        rows=options.rows,
        as_json=options.json,
    )


def _import(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.import_adapter import import_adapter

    return import_adapter(options.source, options.config, rest)


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.evaluate import evaluate

    _keep_compiled()
    return evaluate(options)


def _generate(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.generate import generate
    from goat_jax.mesh.config import MeshConfig
    from goat_jax.run.generate import Sampling

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
    from goat_jax.commands.data import list_sets, prepare_set

    if options.what == "list":
        return list_sets()
    if options.task is None:
        raise UserError("data prepare needs a task: goat-jax data list shows them")
    return prepare_set(options.task, options.out, options.archives, not options.quiet)


def _parity(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.parity.report import main as parity

    return parity(options.folders, options.json)


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.compare import compare

    return compare(
        options.config,
        options.methods,
        options.seeds,
        options.rates,
        rest,
        equal=options.equal,
        at_once=max(1, options.at_once),
        out=options.out,
    )


def _sweep(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.sweep import sweep

    return sweep(
        options.config,
        options.over,
        rest,
        draws=options.random,
        drawn_by=options.draw,
        seeds=options.seeds,
        at_once=max(1, options.at_once),
        out=options.out,
    )


def _bench(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.bench import bench

    return bench(options, rest)


def _methods(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.methods import methods

    return methods(options.model)


def _inspect(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.commands.inspect import inspect, inspect_config

    if (options.folder is None) == (options.config is None):
        raise UserError("inspect takes a run folder or --config FILE: give one of them")
    if options.config is not None:
        return inspect_config(options.config, options.model)
    return inspect(options.folder)


if __name__ == "__main__":
    sys.exit(main())
