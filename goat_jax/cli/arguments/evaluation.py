"""Arguments of ``goat-jax evaluate``, and the evaluation options that they give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goat_jax.cli.arguments.numbers import DEVICES, TOP_P, number
from goat_jax.cli.arguments.words import flag_of
from goat_jax.errors import UserError
from goat_jax.validation.fields import Count, Natural, NonNegative, Positive, Seed

if TYPE_CHECKING:  # importing these starts jax, which --help does not need
    from goat_jax.evaluation.judge_client import Judge
    from goat_jax.evaluation.types import EvalOptions

SCORING_METHODS = ("loss", "generate", "likelihood", "code", "judge")


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax evaluate``."""
    parser.add_argument("source", metavar="RUN|MODEL", help="a run folder or a language model")
    parser.add_argument(
        "--step", type=number(Natural), help="step of the checkpoint (default: the best)"
    )
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME[:OPT=V,...]",
        help="task in place of the run's; may be repeated",
    )
    parser.add_argument(
        "--scoring", choices=SCORING_METHODS, help="scoring method (default: the task's)"
    )
    parser.add_argument(
        "--data", metavar="SOURCE", help="rows in place of the task's evaluation rows"
    )
    parser.add_argument(
        "--limit",
        type=number(Count),
        metavar="N",
        help="number of questions per set, evenly spaced",
    )
    add_tensor(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE|FOLDER",
        help="a .csv, .jsonl or .parquet for each row's label and prediction; for eval tasks a "
        "folder",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per task")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_harness(parser.add_argument_group("lm-evaluation-harness (--harness lm-eval)"))
    add_options(parser)


def add_tensor(parser: argparse.ArgumentParser) -> None:
    """Adds ``--tensor``, which partitions a large model over several devices."""
    parser.add_argument(
        "--tensor",
        type=number(DEVICES),
        default=1,
        metavar="N",
        help="partition every layer over N devices (-1: all)",
    )


SAMPLING = ("max_new_tokens", "temperature", "top_p", "seed", "beams")
"""Arguments that `add_sampling` adds, by the names of the settings."""


def add_sampling(group: argparse._ActionsContainer, tokens: str, temperature: str) -> None:
    """Adds the arguments that `sampling_given` reads.

    Args:
        group: the group of arguments.
        tokens: the default of ``--max-new-tokens``, for its help.
        temperature: the default of ``--temperature``, for its help.
    """
    group.add_argument(
        "--max-new-tokens", type=number(Count), metavar="N", help=f"default: {tokens}"
    )
    group.add_argument("--temperature", type=number(NonNegative), help=f"default: {temperature}")
    group.add_argument("--top-p", type=number(TOP_P), metavar="P", help="default: 1")
    group.add_argument("--seed", type=number(Seed), help="default: 0")
    group.add_argument(
        "--beams", type=number(Count), metavar="N", help="beams of a beam search (default: 1, none)"
    )


def sampling_given(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the sampling settings that were given, by name."""
    return {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}


def _add_harness(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--harness", choices=("lm-eval",), help="whose tasks --task names (default: this library's)"
    )
    group.add_argument(
        "--task-files", metavar="FOLDER", help="folder of further tasks, in lm-eval's YAML files"
    )
    group.add_argument(
        "--num-fewshot", type=number(Natural), metavar="N", help="examples (default: the task's)"
    )
    group.add_argument(
        "--chat-template", action="store_true", help="put the questions into the chat template"
    )
    group.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="keep answers for the next time"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `options_of` reads."""
    _add_answers(parser.add_argument_group("answers"))
    _add_programs(parser.add_argument_group("programs (--scoring code)"))
    _add_judge(parser.add_argument_group("a judge (--scoring judge)"))


def _add_answers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch-size",
        type=number(Count),
        default=16,
        metavar="N",
        help="questions per batch (default: 16)",
    )
    add_sampling(group, "the task's", "the task's; 0 is greedy")
    group.add_argument("--dtype", default="float32", help="dtype of a pretrained model's weights")


def _add_programs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--run-programs",
        action="store_true",
        help="run programs that the model wrote, in a sandbox (Linux with Landlock and seccomp)",
    )
    group.add_argument(
        "--samples", type=number(Count), default=1, metavar="N", help="programs per question"
    )
    group.add_argument(
        "--k", type=number(Count), nargs="+", default=[1], help="values of k in pass@k"
    )
    group.add_argument(
        "--seconds", type=number(Positive), default=10.0, help="limit for each program"
    )
    group.add_argument(
        "--memory", type=number(Count), default=1024, metavar="MIB", help="limit for each program"
    )
    group.add_argument(
        "--workers", type=number(Count), default=1, help="programs or judge requests in parallel"
    )


def _add_judge(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--judge", metavar="URL", help="OpenAI-compatible, such as http://HOST/v1")
    group.add_argument("--judge-model", default="", metavar="NAME")
    group.add_argument(
        "--judge-key", type=Path, metavar="FILE", help="file with the endpoint's API key"
    )
    group.add_argument("--judge-prompts", metavar="FILE", help="FastChat's judge_prompts.jsonl")
    group.add_argument("--references", metavar="FILE", help="reference answers, FastChat's form")
    group.add_argument(
        "--attempts", type=number(Count), default=4, metavar="N", help="attempts per grade"
    )
    group.add_argument(
        "--wait", type=number(NonNegative), default=1.0, help="seconds before the second attempt"
    )
    group.add_argument(
        "--judge-timeout",
        type=number(Positive),
        default=120.0,
        metavar="S",
        help="timeout of one request in seconds",
    )


def options_of(options: argparse.Namespace) -> EvalOptions:
    """Returns the evaluation options that the parsed arguments give.

    Raises:
        UserError: an argument of the judge without ``--judge``.
    """
    from goat_jax.evaluation.sandbox.limits import MEBIBYTE, Limits
    from goat_jax.evaluation.types import EvalOptions

    limits = Limits(
        seconds=options.seconds,
        cpu_seconds=max(1, round(options.seconds)),
        memory=options.memory * MEBIBYTE,
    )
    return EvalOptions(
        batch_size=options.batch_size,
        samples=options.samples,
        ks=tuple(options.k),
        run_programs=options.run_programs,
        limits=limits,
        workers=options.workers,
        judge=_judge_of(options),
        **sampling_given(options),
    )


def _judge_of(options: argparse.Namespace) -> Judge | None:
    from goat_jax.data.tasks.formats.mt_bench import (
        OWN_PROMPTS,
        read_judge_prompts,
        read_references,
    )
    from goat_jax.evaluation.judge_client import Judge, read_key

    if options.judge is None:
        for name in ("judge_model", "judge_key", "judge_prompts", "references"):
            if getattr(options, name):
                raise UserError(f"{flag_of(name)} needs a judge: give its address with --judge URL")
        return None
    prompts, references = options.judge_prompts, options.references
    return Judge(
        url=options.judge,
        model=options.judge_model,
        key=read_key(options.judge_key) if options.judge_key else "",
        prompts=read_judge_prompts(prompts) if prompts else OWN_PROMPTS,
        references=read_references(references) if references else {},
        attempts=options.attempts,
        wait=options.wait,
        timeout=options.judge_timeout,
    )
