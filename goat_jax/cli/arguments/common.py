"""Arguments of every verb of ``goat-jax``; imports none of the modules that do the verbs' work."""

from __future__ import annotations

import argparse
from pathlib import Path

from goat_jax.cli.arguments import evaluation as eval_arguments
from goat_jax.cli.arguments.numbers import DEVICES, number
from goat_jax.config.shipped import shipped_configs
from goat_jax.validation.fields import Count, Natural, Positive, Seed

CONFIG, METHOD = "NAME|FILE[:OPT=V,...]", "METHOD[:OPT=V,...]"
SHELLS = ("bash", "zsh", "fish")


def train(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax train``."""
    config(parser, required=False)
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="RUN",
        type=Path,
        help="continue this run with the config saved in it",
    )
    from_data(parser, required=False)
    parser.add_argument("--help-fields", action="store_true", help="list every field and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    processes(parser)


def processes(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that join several processes."""
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT|auto",
        help="address of the first of several processes; auto on SLURM and TPU pods",
    )
    parser.add_argument("--processes", type=number(Count), metavar="N", help="number of processes")
    parser.add_argument(
        "--process", type=number(Natural), metavar="I", help="index of this process, from 0"
    )


def config(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the argument that names a config."""
    parser.add_argument(
        "--config",
        required=required,
        metavar=CONFIG,
        help=f"a config file, or one of {', '.join(shipped_configs())}",
    )


def from_data(parser: argparse.ArgumentParser, required: bool) -> None:
    """Adds the arguments that replace a config file."""
    parser.add_argument(
        "--model", metavar="NAME|FOLDER", required=required, help="with --data, without --config"
    )
    parser.add_argument(
        "--data", metavar="FILE|FOLDER", required=required, help="a table, or images in folders"
    )
    parser.add_argument("--held-out", metavar="FILE|FOLDER", help="a tenth of --data if not given")


def init(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax init``."""
    parser.add_argument("file", metavar="FILE.py", type=Path, help="the config file to write")
    from_data(parser, required=True)


def generate(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax generate``."""
    parser.add_argument("source", metavar="RUN|MODEL", help="a run folder or a model")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="JSON Lines with a column prompt, or rows in the format of the run's task",
    )
    parser.add_argument("--chat", action="store_true", help="apply the model's chat template")
    eval_arguments.add_sampling(parser, "128, or what the context leaves", "0, greedy")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT")
    eval_arguments.add_tensor(parser)
    parser.add_argument(
        "--step", type=number(Natural), help="step of the checkpoint (default: the best)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per prompt")


def predict(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax predict``."""
    parser.add_argument("run_folder", metavar="RUN", type=Path)
    parser.add_argument(
        "--data", nargs="+", metavar="SOURCE", help="rows without labels; images: also folders"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a new .csv, .jsonl or .parquet file"
    )
    parser.add_argument(
        "--text",
        nargs="+",
        action="append",
        metavar="TEXT",
        help="one row, printed; may be given several times",
    )
    parser.add_argument(
        "--step", type=number(Natural), help="which checkpoint; the best if not given"
    )
    parser.add_argument(
        "--batch-size", type=number(Count), metavar="N", help="that of evaluation if not given"
    )
    parser.add_argument(
        "--mesh.data",
        dest="mesh_data",
        type=number(DEVICES),
        default=1,
        metavar="N",
        help="share the rows of each batch out over N devices (-1: all)",
    )
    eval_arguments.add_tensor(parser)
    processes(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    group = parser.add_argument_group("answers of language models")
    eval_arguments.add_sampling(group, "the task's", "0, greedy")


def data(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax data``."""
    parser.add_argument("what", choices=("list", "prepare", "write"))
    parser.add_argument("task", nargs="?", metavar="TASK")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER|FILE.csv",
        help="folder of all data sets (default: that of tensorflow_datasets); with write, the file",
    )
    parser.add_argument(
        "--rows", type=number(Count), metavar="N", help="with write: so many, evenly spaced"
    )
    parser.add_argument(
        "--archives",
        type=Path,
        metavar="FOLDER",
        help="folder with files that are already downloaded",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def parity(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax parity``."""
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")


def export(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax export``."""
    parser.add_argument("run_folder", metavar="RUN", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder that does not exist yet")
    forms = ("peft", "goat", "merged", "transformers", "lora")
    parser.add_argument("--to", required=True, choices=forms)
    parser.add_argument(
        "--step", type=number(Natural), help="step of the checkpoint (default: the best)"
    )
    parser.add_argument(
        "--task-id",
        type=number(Natural),
        metavar="N",
        help="task whose weights a task-gated adapter uses",
    )
    parser.add_argument(
        "--rows",
        type=number(Count),
        default=256,
        metavar="N",
        help="training rows on which the constant weights of --to lora are measured (default: 256)",
    )
    parser.add_argument(
        "--gates",
        choices=("best", "fitted", "mean"),
        default="best",
        help="constant weights of --to lora: of least squared error, the mean, or of these the "
        "ones with the lower loss on the evaluation rows (default)",
    )
    parser.add_argument(
        "--rank", type=number(Count), metavar="N", help="largest rank of --to lora, by an SVD"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of a complete model's weights (default: the run's with routed experts, else "
        "that of the pretrained weights)",
    )
    parser.add_argument(
        "--push",
        metavar="USER/NAME",
        help="upload the folder to this repository of the Hugging Face hub; a new one is private",
    )
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--json", action="store_true", help="print JSON")


def import_adapter(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax import``."""
    parser.add_argument(
        "source",
        metavar="FOLDER",
        type=Path,
        help="a PEFT adapter, or one of the published GOAT code",
    )
    config(parser)
    parser.add_argument(
        "--other-base",
        action="store_true",
        help="allow a base model other than the one the adapter was trained on",
    )


def compare(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax compare``."""
    config(parser)
    parser.add_argument("--methods", required=True, nargs="+", metavar=METHOD)
    parser.add_argument("--seeds", type=number(Seed), nargs="+", default=[0], metavar="N")
    parser.add_argument(
        "--rates", type=number(Positive), nargs="+", default=[], metavar="LEARNING_RATE"
    )
    parser.add_argument(
        "--equal",
        choices=("rank", "parameters"),
        default="rank",
        help="what is equal across methods (default: rank)",
    )
    parser.add_argument(
        "--runs-per-step",
        type=number(Count),
        default=1,
        metavar="N",
        help="runs of a method that share a training step; memory grows with N",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="FOLDER")


def sweep(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax sweep``."""
    config(parser)
    parser.add_argument(
        "--over",
        required=True,
        nargs="+",
        metavar="FIELD=V,V,...|LOW..HIGH[:log]",
        help="fields of the config; adapter.OPTION for an option of the method",
    )
    parser.add_argument(
        "--random",
        type=number(Count),
        metavar="N",
        help="draw N random points (default: the full grid)",
    )
    parser.add_argument(
        "--draw", type=number(Seed), default=0, metavar="SEED", help="seed of --random"
    )
    parser.add_argument("--seeds", type=number(Seed), nargs="+", default=[0], metavar="N")
    parser.add_argument(
        "--runs-per-step",
        type=number(Count),
        default=1,
        metavar="N",
        help="runs that share a training step; memory grows with N",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), metavar="FOLDER")


def bench(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax bench``."""
    parser.add_argument("what", choices=("layer", "step", "growth", "start", "accelerator"))
    parser.add_argument("--rank", type=number(Count), default=32, help="total rank of a layer (32)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of a layer"
    )
    parser.add_argument(
        "--size",
        action="append",
        default=[],
        metavar="TOKENS,IN,OUT",
        help="sizes of a layer; IN,OUT of a kernel for start",
    )
    parser.add_argument(
        "--routes", nargs="+", metavar="ROUTE", help="ways to decompose a kernel (default: all)"
    )
    config(parser, required=False)
    parser.add_argument(
        "--model",
        metavar="NAME|FOLDER",
        help="model whose sizes are used (default: the config's; accelerator: llama-3-8b)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["lora", "goat"],
        metavar=METHOD,
        help="methods to measure; growth measures the last one",
    )
    parser.add_argument(
        "--turns", type=number(Count), help="measurements of each method (9; accelerator: 5)"
    )
    parser.add_argument(
        "--minutes",
        type=number(Positive),
        help="most minutes of bench accelerator (10; with --tiny 60)",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, to try bench accelerator on a CPU"
    )
    parser.add_argument(
        "--parts", nargs="+", metavar="PART", help="parts of bench accelerator (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for the JSON file, table and figure"
    )


def methods(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax methods``."""
    parser.add_argument(
        "--model", metavar="MODEL", help="name or folder of a model; needs no weights"
    )


def inspect(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax inspect``."""
    parser.add_argument("folder", metavar="RUN", type=Path, nargs="?")
    config(parser, required=False)
    parser.add_argument("--model", metavar="MODEL", help="model in place of the config's")


def plot(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax plot``."""
    parser.add_argument("folders", metavar="RUN", type=Path, nargs="+")
    parser.add_argument(
        "--step", type=number(Natural), help="step of the checkpoint (default: the best)"
    )
    parser.add_argument("--text", metavar="SENTENCE", help="text whose tokens are followed")
    parser.add_argument(
        "--image", metavar="FILE", type=Path, help="image whose patches are followed"
    )
    parser.add_argument(
        "--row",
        type=number(Natural),
        default=0,
        metavar="N",
        help="evaluation row to follow if no text or image is given (default: 0)",
    )
    parser.add_argument(
        "--records-only",
        action="store_true",
        help="draw only what metrics.jsonl records; loads no model",
    )


def plan(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax plan``."""
    config(parser)
    parser.add_argument("--topology", required=True, metavar="cpu:N|v5e:4x4|h100:8|h100:2x8")
    parser.add_argument(
        "--chip", metavar="NAME", help="chip whose memory and speed apply, such as v5e or h100"
    )
    parser.add_argument(
        "--largest-batch", action="store_true", help="search for the largest micro-batch that fits"
    )
    parser.add_argument(
        "--every-remat",
        action="store_true",
        help="compare bytes and FLOPs of all policies of model.remat instead",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def completion(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``goat-jax completion``."""
    parser.add_argument("shell", choices=SHELLS)
