"""One function per verb: passes its parsed arguments to the code that does the work.

That code is imported at the call, so that help and errors about arguments come at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from goat_jax.cli.arguments.evaluation import sampling_given
from goat_jax.cli.entry import in_one_line
from goat_jax.errors import UserError
from goat_jax.files import cache_folder
from goat_jax.hardware.compile_cache import keep_compiled


def run_plan(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.plan import plan

    return plan(
        options.config,
        rest,
        options.topology,
        chip=options.chip,
        largest=options.largest_batch,
        every_remat=options.every_remat,
        as_json=options.json,
    )


def run_plot(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.plot import Choice, plot

    choice = Choice(options.step, options.text, options.image, options.row, options.records_only)
    for folder in options.folders:
        print(plot(folder, choice))
    return 0


def _in_processes(options: argparse.Namespace, action: Callable[[], int]) -> int:
    """Runs an action, as one of several processes if the arguments say so."""
    if options.coordinator:
        from goat_jax.training.distributed.processes import Processes, as_one

        place = Processes(options.coordinator, options.processes, options.process)
        return as_one(place, partial(in_one_line, "goat-jax", action))
    if options.processes is not None or options.process is not None:
        raise UserError("--processes and --process need --coordinator HOST:PORT")
    return action()


def run_train(options: argparse.Namespace, rest: list[str]) -> int:
    return _in_processes(options, partial(_train_here, options, rest))


def _train_here(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.train import Start, train

    start = Start(
        options.config,
        options.run_folder,
        options.model,
        options.data,
        options.held_out,
    )
    if options.help_fields:
        rest = ["--help"]
    keep_compiled()
    return train(start, rest, progress=not options.quiet, cache=cache_folder())


def run_init(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.init import init

    return init(options.file, options.model, options.data, options.held_out, rest)


def run_export(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.export import export

    return export(
        options.run_folder,
        options.to,
        options.out,
        step=options.step,
        task=options.task_id,
        rows=options.rows,
        gates=options.gates,
        rank=options.rank,
        dtype=options.dtype,
        as_json=options.json,
        push_to=options.push,
        public=options.public,
    )


def run_import(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.import_adapter import import_adapter

    return import_adapter(options.source, options.config, rest, options.other_base)


def run_evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.evaluate import evaluate

    keep_compiled()
    return evaluate(options)


def run_predict(options: argparse.Namespace, rest: list[str]) -> int:
    return _in_processes(options, partial(_predict_here, options))


def _predict_here(options: argparse.Namespace) -> int:
    from goat_jax.cli.verbs.predict import predict

    keep_compiled()
    return predict(options)


def run_generate(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.generate import generate
    from goat_jax.evaluation.sampler import Sampling
    from goat_jax.sharding.config import MeshConfig

    keep_compiled()
    sampling = Sampling(stop=tuple(options.stop), **sampling_given(options))
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


def run_data(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.data import list_sets, prepare_set, write_rows

    if options.what == "list":
        return list_sets()
    if options.task is None:
        raise UserError(f"data {options.what} needs a task: goat-jax data list shows the tasks")
    if options.what == "write":
        return write_rows(options.task, options.out, options.rows)
    return prepare_set(options.task, options.out, options.archives, not options.quiet)


def run_parity(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.parity.report import main as parity

    return parity(options.folders, options.json)


def run_compare(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.compare import compare

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


def run_sweep(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.sweep import sweep

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


def run_bench(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.bench import bench

    return bench(options, rest)


def run_methods(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.methods import methods

    return methods(options.model)


def run_inspect(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.verbs.inspect import inspect, inspect_config

    if (options.folder is None) == (options.config is None):
        raise UserError("inspect takes a run folder or --config FILE: give one of them")
    if options.config is not None:
        return inspect_config(options.config, options.model)
    return inspect(options.folder)


def run_completion(options: argparse.Namespace, rest: list[str]) -> int:
    from goat_jax.cli.parser import make_parser
    from goat_jax.cli.verbs.completion import completion

    return completion(options.shell, make_parser())
