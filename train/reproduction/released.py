"""Settings of the published code where they differ from the paper's (``paper.py --as released``).

Source: github.com/Facico/GOAT-PEFT at ef4d21a. Its scripts run `goat`; the other methods get the
same settings here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from goat_jax.adapters.parts.scales import TheoreticalScale
from goat_jax.config.fields import with_fields
from goat_jax.config.run import RunConfig
from goat_jax.data.sources.read import AND
from goat_jax.data.tasks.benchmarks.glue import GLUE
from goat_jax.data.tasks.benchmarks.vision import VISION
from goat_jax.injection.targets import TASK_HEAD

Fields = Mapping[str, Any]
EVERY = ("vision", "glue", "math", "code", "chat", "commonsense")

INSTRUCTIONS = {
    "cola": "classify the grammaticality of the text: ",
    "sst2": "classify the sentiment of the text: ",
    "mrpc": "classify the semantic similarity of the text: ",
    "qqp": "classify the semantic similarity of the text: ",
    "mnli": "classify the semantic similarity of the text: ",
    "qnli": "classify the semantic similarity of the question and the sentence: ",
    "rte": "determine if the second sentence entails the first sentence: ",
    "stsb": "compute the semantic similarity between the two sentences: ",
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference between the published code and the paper.

    Attributes:
        what: the published code's setting, and in brackets the paper's.
        configs: the config files that it concerns.
        fields: config of a run as in the paper -> the config fields that change.
        evaluation: the evaluation options that change.
    """

    what: str
    configs: tuple[str, ...]
    fields: Callable[[RunConfig], Fields] = lambda config: {}
    evaluation: Fields = dataclasses.field(default_factory=dict)


def _scale(config: RunConfig) -> Fields:
    theory = isinstance(config.adapter.spec().scale, TheoreticalScale)
    return {"adapter.scale": "alpha_over_rank"} if theory else {}


def _aux_loss(config: RunConfig) -> Fields:
    own = {"reference_code": True, "count_padding": True}
    return {"adapter.defaults": {**config.adapter.defaults, **own}}


def _warmup(config: RunConfig) -> Fields:
    return {"optimizer.warmup_steps": math.ceil(0.03 * config.train.total_steps)}


def _rows(config: RunConfig) -> Fields:
    name, batch = config.task.name, config.train.batch_size
    rows = VISION[name].rows[0]
    left = rows - min(rows // 10, 5000)
    if name == "eurosat":  # has a validation split of its own
        return {}
    epochs = config.train.total_steps // (rows // batch)
    return {"task.train_limit": left, "train.steps": max(1, epochs * (left // batch))}


def _prompt(config: RunConfig) -> Fields:
    columns = "\n".join(f"{{{name}}}" for name in GLUE[config.task.name].text)
    return {"task.prompt": f"{INSTRUCTIONS[config.task.name]}{columns}\nresult: "}


def _first_split(config: RunConfig) -> Fields:
    first, *others = config.task.evaluation.split(AND)
    metrics = GLUE[config.task.name].metrics[:1]
    own = {"task.evaluation": first, "task.parts": (), "task.metrics": metrics}
    return own if others else {}


DIFFERENCES = (
    Difference("scale alpha / R (the theory's)", EVERY, _scale),
    Difference("balance loss times k, padding counted (k = 1, without)", EVERY, _aux_loss),
    Difference(
        "a dropout mask for each expert (one)",
        EVERY,
        lambda config: {"adapter.dropout_per_expert": True},
    ),
    Difference(
        "a new linear head on the mean of the patches, trained (class names, frozen)",
        ("vision",),
        lambda config: {
            "model.options": {**config.model.options, "head": "linear"},
            "adapter.modules_to_save": (TASK_HEAD,),
        },
    ),
    Difference("90 % of the training rows; EuroSAT: all (all)", ("vision",), _rows),
    Difference("the sentences in one prompt text (a pair of sentences)", ("glue",), _prompt),
    Difference("no balance loss (0.001)", ("glue",), lambda config: {"adapter.aux_weight": 0.0}),
    Difference("MNLI: matched rows (matched and mismatched)", ("glue",), _first_split),
    Difference(
        "sampled answers, temperature 0.8, top-p 0.95 (not stated)",
        ("math", "code"),
        evaluation={"temperature": 0.8, "top_p": 0.95},
    ),
    Difference("beam search with 4 beams (not stated)", ("commonsense",), evaluation={"beams": 4}),
    Difference("warm-up over 3 % of the steps (100 steps)", EVERY, _warmup),
)
"""All differences; each changes what those before it have left."""


def as_released(name: str, config: RunConfig) -> RunConfig:
    """Returns a run of the paper with the settings of the published code.

    Args:
        name: the config file's name, without its ending.
        config: the run as in the paper.
    """
    for difference in DIFFERENCES:
        if name in difference.configs:
            config = with_fields(config, difference.fields(config))
    return config


def released_evaluation(name: str) -> dict[str, Any]:
    """Returns the evaluation options of the published code for the runs of a config file.

    >>> released_evaluation("math")
    {'temperature': 0.8, 'top_p': 0.95}
    """
    return {
        option: value
        for difference in DIFFERENCES
        if name in difference.configs
        for option, value in difference.evaluation.items()
    }
