"""Tasks, methods and learning rates of the study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from goat_jax.cli.verbs.compare import MethodRow, entry_config
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Peak learning rates that every method is tried at, half a decade apart."""

HEAD_RATES = (3e-2, 1e-1)
"""Further rates of the head alone, which is best at higher ones than what has adapters."""

FROZEN, FULL, BASELINE = "frozen", "full", "lora"
"""Methods that the others are compared with."""

SIZE = "goat"
"""Method whose number of trained parameters the others get at equal parameters.

Not LoRA's: at its rank, a mixture of as many experts has none to spare for its router.
"""

METHODS: Mapping[str, MethodRow] = {
    label: MethodRow(label, method, options)
    for label, method, options in (
        # Adapters at this scale are below the rounding of what they are added to.
        (FROZEN, "lora", {"scale": "fixed", "value": 1e-12}),
        (FULL, "full", {}),
        (BASELINE, "lora", {}),
        ("rslora", "rslora", {}),
        ("pissa", "pissa", {}),
        ("milora", "milora", {}),
        ("dora", "dora", {}),
        ("lora_ga", "lora_ga", {}),
        ("molora", "molora", {}),
        ("hydralora", "hydralora", {}),
        ("adamole", "adamole", {"num_experts": 4}),
        ("goat", "goat", {}),
        ("goat_plus", "goat_plus", {}),
        ("goat, alpha/r", "goat", {"scale": "alpha_over_rank"}),
        ("molora, theory scale", "molora", {"scale": "theory"}),
        ("full_moe", "full_moe", {}),
    )
}
"""Label -> method and options of its adapters."""

EFFECTS: Mapping[str, MethodRow] = {
    label: MethodRow(label, method, options)
    for label, method, options in (
        ("goat, rho 1", "goat", {"rho": 1.0}),
        ("goat, rho 100", "goat", {"rho": 100.0}),
        ("goat, eta 0.1", "goat", {"eta": 0.1}),
        ("goat, eta 10", "goat", {"eta": 10.0}),
        # At B = 0 the scale of the least squared error to full fine-tuning's step is sqrt(3 eta).
        ("goat, scale sqrt(3)", "goat", {"scale": "fixed", "value": 3**0.5}),
        ("goat, segments P", "goat", {"segments": "principal"}),
        ("goat, segments M", "goat", {"segments": "minor"}),
        ("goat, segments R", "goat", {"segments": "random"}),
        ("lora, theory scale", "lora", {"scale": "theory"}),
    )
}
"""Label -> one of the methods with one option changed, for what the option does."""

ROWS = {**METHODS, **EFFECTS}
"""Label -> its row, in the order of reports."""


@dataclasses.dataclass(frozen=True)
class StudyTask:
    """A task of the study.

    Attributes:
        title: the task and its model, in words.
        source: the config file in `configs/` and its options; ``{data}`` is the folder of data
            sets.
        fields: ``--field value ...``, which override the config file; ``{data}`` as in `source`.
        metric: the score that is compared.
        validation: the number of training rows on which learning rates are chosen.
        without: methods that are left out.
        equal_parameters: whether runs at equal trained parameters are part of it.
        effects: whether runs of `EFFECTS` are part of it.
        head: whether the model has a new head, which is trained if all else is frozen.
        rates: peak learning rates that methods are tried at.
    """

    title: str
    source: str
    fields: str
    metric: str
    validation: int
    without: tuple[str, ...] = ()
    equal_parameters: bool = False
    effects: bool = False
    head: bool = True
    rates: Sequence[float] = RATES

    def rates_of(self, method: str) -> tuple[float, ...]:
        """Returns the peak learning rates that a method is tried at, in ascending order."""
        return (*self.rates, *(HEAD_RATES if method == FROZEN else ()))

    def config(self, method: str, data: Path) -> RunConfig:
        """Returns the config of a method's runs, which are scored on the test rows."""
        source = f"{CONFIGS / self.source.format(data=data)}"
        return entry_config(source, ROWS[method], self.fields.format(data=data).split(), "study")

    def methods(self) -> list[str]:
        """Returns the labels of the methods that are trained on the task."""
        compared = [label for label in METHODS if label not in self.without]
        return compared + list(EFFECTS) * self.effects


def on_validation(config: RunConfig, rows: int) -> RunConfig:
    """Returns a config whose runs are scored on rows that are held out of the training rows."""
    task = dataclasses.replace(
        config.task, evaluation=config.task.train, evaluation_limit=None, held_out=rows
    )
    return dataclasses.replace(config, task=task)


TEXT = "--train.batch-size 16 --train.eval-batch-size 64 --train.max-length"
IMAGES = "--train.batch-size 16 --train.eval-batch-size 50 --task.image-size 28"
LANGUAGE = "--train.eval-batch-size 8 --model.dtype float32 --model.remat none"
FASHION = (
    "--task.train idx:{data}/fashion-mnist@train --task.evaluation idx:{data}/fashion-mnist@test"
)

TASKS: Mapping[str, StudyTask] = {
    "digits": StudyTask(
        "Handwritten digits, DINOv2 ViT-S/14",
        "digits.py:task=digits,steps=60",
        IMAGES,
        "accuracy",
        360,
        equal_parameters=True,
        effects=True,
    ),
    "fashion_mnist": StudyTask(
        "Fashion-MNIST, 10,000 rows, DINOv2 ViT-S/14",
        "digits.py:task=fashion_mnist,steps=60",
        f"{IMAGES} {FASHION} --task.evaluation-limit 1000",
        "accuracy",
        500,
    ),
    "reviews": StudyTask(
        "Movie reviews, MiniLM-L6",
        "demo.py:task=reviews,steps=60",
        f"{TEXT} 24",
        "accuracy",
        500,
        equal_parameters=True,
    ),
    "sst2": StudyTask(
        "SST-2's 6,920 sentences, MiniLM-L6",
        "demo.py:task=sst2,folder={data}/glue,steps=60",
        f"{TEXT} 24",
        "accuracy",
        500,
    ),
    "cola": StudyTask(
        "CoLA, MiniLM-L6",
        "demo.py:task=cola,folder={data}/glue,steps=120",
        f"{TEXT} 16",
        "matthews",
        500,
    ),
    "rte": StudyTask(
        "RTE, MiniLM-L6",
        "demo.py:task=rte,folder={data}/glue,steps=60",
        f"{TEXT} 80",
        "accuracy",
        300,
    ),
    "gsm8k": StudyTask(
        "GSM8K's answers, SmolLM2-135M",
        "gsm8k.py:folder={data}/gsm8k,steps=20,rows=100",
        f"{LANGUAGE} --train.max-length 128",
        "perplexity",
        50,
        head=False,
    ),
    "arc_easy": StudyTask(
        "ARC-Easy, the likeliest of the options' texts, SmolLM2-135M",
        "commonsense.py:task=arc_easy,cloze=true,model=package:smollm2,folder={data}/commonsense,"
        "batch=8,rank=16,learning_rate=1e-3,dropout=0.0",
        f"{LANGUAGE} --train.steps 40 --optimizer.warmup-steps 4 --train.max-length 128"
        " --task.evaluation-limit 100 --task.metrics accuracy perplexity",
        "accuracy",
        100,
        head=False,
    ),
}
"""Name -> task."""


def task_of(name: str) -> StudyTask:
    """Returns the task of a name.

    Raises:
        UserError: an unknown name.
    """
    if name not in TASKS:
        raise UserError(f"task {name!r} is not part of the study: use {', '.join(TASKS)}")
    return TASKS[name]
