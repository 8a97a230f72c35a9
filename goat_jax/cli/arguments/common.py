"""Arguments of every verb of ``goat-jax``; imports none of the modules that do the verbs' work."""

from __future__ import annotations

import argparse
from pathlib import Path

from goat_jax.cli.arguments import evaluation as eval_arguments
from goat_jax.cli.arguments.numbers import TOP_P, number
from goat_jax.validation.fields import Count, Natural, NonNegative, Positive, Seed


def train(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax train``."""
    parser.add_argument("--config", metavar="FILE[:OPT=V,...]")
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="RUN",
        type=Path,
        help="go on with this run, by its own config",
    )
    parser.add_argument("--help-fields", action="store_true", help="list every field and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT|auto",
        help="one process of several: where the first listens; auto on SLURM and TPU pods",
    )
    parser.add_argument("--processes", type=number(Count), metavar="N", help="how many there are")
    parser.add_argument(
        "--process", type=number(Natural), metavar="I", help="which one this is, from 0"
    )


def generate(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax generate``."""
    parser.add_argument("source", metavar="RUN|MODEL", help="a run folder or a model")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSONL with a column prompt, or a run's own"
    )
    parser.add_argument("--chat", action="store_true", help="wrap in the model's chat template")
    parser.add_argument(
        "--max-new-tokens", type=number(Count), metavar="N", help="128 if there is room"
    )
    parser.add_argument(
        "--temperature", type=number(NonNegative), default=0.0, help="0 (default) is greedy"
    )
    parser.add_argument("--top-p", type=number(TOP_P), default=1.0, metavar="P")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT")
    eval_arguments.add_tensor(parser)
    parser.add_argument("--seed", type=number(Seed), default=0)
    parser.add_argument(
        "--step", type=number(Natural), help="which checkpoint; the best if not given"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, a line a prompt")


def data(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax data``."""
    parser.add_argument("what", choices=("list", "prepare"))
    parser.add_argument("task", nargs="?", metavar="TASK")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of all sets; TFDS's if not given"
    )
    parser.add_argument(
        "--archives", type=Path, metavar="FOLDER", help="that has some of the files already"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def parity(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax parity``."""
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")


def export(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax export``."""
    parser.add_argument("run_folder", metavar="RUN", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder that is not there yet")
    parser.add_argument("--to", required=True, choices=("peft", "goat", "merged", "lora"))
    parser.add_argument(
        "--step", type=number(Natural), help="which checkpoint; the best if not given"
    )
    parser.add_argument(
        "--task-id", type=number(Natural), metavar="N", help="the task of a task-gated adapter"
    )
    parser.add_argument(
        "--rows",
        type=number(Count),
        default=256,
        metavar="N",
        help="training rows to measure gates on",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of merged weights; as the pretrained ones are stored if not given",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def import_adapter(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax import``."""
    parser.add_argument("source", metavar="FOLDER", type=Path, help="PEFT, or published GOAT")
    parser.add_argument("--config", required=True, metavar="FILE[:OPT=V,...]")
    parser.add_argument(
        "--other-base", action="store_true", help="the model is meant to be another than its own"
    )


def compare(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax compare``."""
    parser.add_argument("--config", required=True, metavar="FILE[:OPT=V,...]")
    parser.add_argument("--methods", required=True, nargs="+", metavar="METHOD[:OPT=V,...]")
    parser.add_argument("--seeds", type=number(Seed), nargs="+", default=[0], metavar="N")
    parser.add_argument(
        "--rates", type=number(Positive), nargs="+", default=[], metavar="LEARNING_RATE"
    )
    parser.add_argument(
        "--equal", choices=("rank", "parameters"), default="rank", help="what methods share"
    )
    parser.add_argument(
        "--runs-per-step",
        type=number(Count),
        default=1,
        metavar="N",
        help="runs of a method in one step (memory!)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="FOLDER")


def sweep(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax sweep``."""
    parser.add_argument("--config", required=True, metavar="FILE[:OPT=V,...]")
    parser.add_argument(
        "--over",
        required=True,
        nargs="+",
        metavar="FIELD=V,V,...|LOW..HIGH[:log]",
        help="fields of the config, adapter.OPTION for those of a method's parts",
    )
    parser.add_argument(
        "--random",
        type=number(Count),
        metavar="N",
        help="draw N points; the whole grid if not given",
    )
    parser.add_argument("--draw", type=number(Seed), default=0, metavar="SEED", help="of --random")
    parser.add_argument("--seeds", type=number(Seed), nargs="+", default=[0], metavar="N")
    parser.add_argument(
        "--runs-per-step",
        type=number(Count),
        default=1,
        metavar="N",
        help="runs in one step (memory!)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), metavar="FOLDER")


def bench(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax bench``."""
    parser.add_argument("what", choices=("layer", "step", "growth"))
    parser.add_argument("--rank", type=number(Count), default=32, help="total rank of a layer (32)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of a layer"
    )
    parser.add_argument(
        "--size", action="append", default=[], metavar="TOKENS,IN,OUT", help="of a layer"
    )
    parser.add_argument("--config", metavar="FILE[:OPT=V,...]", help="whose steps")
    parser.add_argument("--model", metavar="NAME|FOLDER", help="whose sizes; the config's model")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["lora", "goat"],
        metavar="METHOD[:OPT=V,...]",
        help="of a step; the last one is that of growth",
    )
    parser.add_argument("--turns", type=number(Count), default=9, help="of each contender (9)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep JSON and figure there")


def methods(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax methods``."""
    parser.add_argument("--model", metavar="MODEL", help="its name or folder; no weights needed")


def inspect(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax inspect``."""
    parser.add_argument("folder", metavar="RUN", type=Path, nargs="?")
    parser.add_argument("--config", metavar="FILE[:OPT=V,...]")
    parser.add_argument("--model", metavar="MODEL", help="another model than the config's")


def plot(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax plot``."""
    parser.add_argument("folders", metavar="RUN", type=Path, nargs="+")
    parser.add_argument(
        "--step", type=number(Natural), help="which checkpoint; the best if not given"
    )
    parser.add_argument("--text", metavar="SENTENCE", help="whose tokens are followed")
    parser.add_argument("--image", metavar="FILE", type=Path, help="whose patches are followed")
    parser.add_argument(
        "--row",
        type=number(Natural),
        default=0,
        metavar="N",
        help="evaluation row, without text or image",
    )
    parser.add_argument(
        "--records-only", action="store_true", help="what metrics.jsonl holds; opens no model"
    )


def plan(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax plan``."""
    parser.add_argument("--config", required=True, metavar="FILE[:OPT=V,...]")
    parser.add_argument("--topology", required=True, metavar="cpu:N|v5e:4x4")
    parser.add_argument(
        "--chip", metavar="NAME", help="whose limits to reckon with, as v5e or h100"
    )
    parser.add_argument("--largest-batch", action="store_true", help="also find it, by trying some")
    parser.add_argument("--json", action="store_true", help="print JSON")
