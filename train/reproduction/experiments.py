"""The paper's tables, ablations and figures as data: their runs, rows, columns and scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS
from goat_jax.evaluation.types import EvalOptions
from reproduction import measures
from reproduction.published_scores import (
    ABLATION_SCORES,
    BALANCE_SCORES,
    COMMONSENSE_SCORES,
    COST_SCORES,
    GENERATION_SCORES,
    GLUE_SCORES,
    LOAD_SCORES,
    PLUS_SCORES,
    RANK_SCORES,
    RATE_SCORES,
    ROUTING_SCORES,
    VISION_SCORES,
    Scores,
)

Measure = Callable[[RunConfig, EvalOptions, bool], measures.Scores]
"""(config, evaluation options, whether to draw a progress bar) -> scores by name."""


@dataclasses.dataclass(frozen=True)
class PaperTask:
    """One task of the paper: a config file with options, and the columns that its runs fill.

    Attributes:
        config: the config file's name, without its ending.
        columns: column -> the name of the score in it.
        options: options of the config file.
        factor: the factor that scores are multiplied by: 100 turns fractions into percent.
        measure: the name of the function in `measures` that returns the scores.
    """

    config: str
    columns: Mapping[str, str]
    options: str = ""
    factor: float = 100.0
    measure: str = "trained_scores"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table, an ablation or a figure of the paper.

    Attributes:
        title: a short description.
        tasks: keys of `TASKS` with the runs of every row.
        rows: the rows, as `labels.read_label` reads them -> column -> published score.
        columns: column -> the columns of the tasks whose mean it shows; empty: the tasks' own.
        figures: numbers of the figures that the runs are drawn as.
        average: whether the mean over the columns is shown.
    """

    title: str
    tasks: Sequence[str]
    rows: Scores
    columns: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    figures: tuple[int, ...] = ()
    average: bool = True


IMAGES, GLUE = (tuple(next(iter(scores.values()))) for scores in (VISION_SCORES, GLUE_SCORES))
LANGUAGE = ("chat", "math", "code")
RATES = tuple(next(iter(RATE_SCORES.values())))
GSM8K = "accuracy_strict"
"""Accuracy by the integer after the first "####", as the published code reads answers."""

TASKS: Mapping[str, PaperTask] = MappingProxyType(
    {task: PaperTask("vision", {task: "accuracy"}, f"task={task}") for task in IMAGES}
    | {task: PaperTask("glue", {task: "accuracy"}, f"task={task}") for task in GLUE}
    | {
        "chat": PaperTask("chat", {"chat": "score/turn_1"}, factor=1.0),
        "math": PaperTask("math", {"math": GSM8K}),
        "code": PaperTask("code", {"code": "pass@1"}),
        "commonsense": PaperTask("commonsense", {name: f"accuracy/{name}" for name in FOLDERS}),
    }
    | {f"math-{rate}": PaperTask("math", {rate: GSM8K}, f"learning_rate={rate}") for rate in RATES}
    | {
        "cost": PaperTask("math", {n: n for n in ("memory", "hours")}, factor=1.0, measure="cost"),
        "load": PaperTask(
            "vision",
            {str(number): f"load/{number}" for number in range(1, 9)},
            "task=cars",
            measure="expert_load",
        ),
    }
)
"""Name of a task -> its runs. Tables share runs: their folders are named by task and row."""

MIXTURES = ("molora", "hydralora", "goat")
SIZES = [(e, k) for e in (2, 4, 8, 16) for k in (1, 2, 4, 8) if k <= e]
SCALES, RANKS = (1, 2, 4, 16, 48), (8, 16, 32, 64, 128)


def _rows(*labels: str, scores: Scores = MappingProxyType({})) -> Scores:
    return {label: scores.get(label, {}) for label in labels}


EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        "table1": Experiment("images, CLIP ViT-B/32", IMAGES, VISION_SCORES, figures=(4, 7)),
        "table2": Experiment("generation, LLaMA-2-7B", LANGUAGE, GENERATION_SCORES),
        "table3": Experiment("commonsense, LLaMA-2-7B", ["commonsense"], COMMONSENSE_SCORES),
        "table4": Experiment("GLUE, RoBERTa-large", GLUE, GLUE_SCORES, figures=(4, 7)),
        "table5": Experiment("segments and scale", IMAGES, ABLATION_SCORES),
        "table6": Experiment(
            "learning rate", [f"math-{rate}" for rate in RATES], RATE_SCORES, average=False
        ),
        "table7": Experiment("cost and score", ["cost", "math"], COST_SCORES, average=False),
        "table8": Experiment(
            "GOAT and GOAT+ on everything",
            [*LANGUAGE, *GLUE, *IMAGES, "commonsense"],
            PLUS_SCORES,
            {"generation": LANGUAGE, "glue": GLUE, "images": IMAGES, "commonsense": [*FOLDERS]},
        ),
        "routing": Experiment("routing strategies", IMAGES, ROUTING_SCORES),
        "balance": Experiment("coefficient of the balance loss", ["cars"], BALANCE_SCORES),
        "load": Experiment("load without balance loss", ["load"], LOAD_SCORES, average=False),
        "figure1": Experiment(
            "score against the segment that a single LoRA starts from",
            IMAGES,
            _rows(*(f"pissa@{rank}:offset={n / 8:g}" for rank in (32, 128) for n in range(9))),
            figures=(1,),
        ),
        "figure2": Experiment(
            "loss and gradient norm against scale and rank",
            IMAGES,
            _rows(*(f"pissa@{r}:scale=fixed,value={s}" for r in (1, 8, 32, 128) for s in SCALES)),
            figures=(2,),
        ),
        "figure4": Experiment(
            "loss curves by method",
            IMAGES,
            _rows("full_moe", "lora", "pissa", "milora", *MIXTURES, scores=VISION_SCORES),
            figures=(4,),
        ),
        "figure5": Experiment(
            "score against rank",
            IMAGES,
            _rows(*(f"{name}@{r}" for r in RANKS for name in MIXTURES), scores=RANK_SCORES),
            figures=(5,),
        ),
        "figure6": Experiment(
            "score against experts and active experts",
            IMAGES,
            _rows(*(f"goat@32:num_experts={e},top_k={k}" for e, k in SIZES)),
            figures=(6,),
        ),
        "figure7": Experiment(
            "share of tokens per expert",
            IMAGES,
            _rows("goat", scores=VISION_SCORES),
            figures=(7,),
        ),
    }
)
"""Name on the command line -> the table, ablation or figure."""
