"""`RunConfig`: the complete configuration of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp

from goat_jax.adapters.methods import method_spec
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.config.train import LoggingConfig, TrainConfig
from goat_jax.data.tasks.registry import Task
from goat_jax.errors import UserError
from goat_jax.injection.selection import Override
from goat_jax.injection.svd_cache import SvdConfig
from goat_jax.injection.targets import ALL_LINEAR, check_regex
from goat_jax.nn.attention import AUTO, WAYS
from goat_jax.nn.dropout import CHECKPOINT
from goat_jax.nn.quantized_kernel import KINDS as QUANTIZED
from goat_jax.nn.stack import REMAT
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.sharding.config import MeshConfig, Rules
from goat_jax.validation.checks import check_choice
from goat_jax.validation.fields import (
    Count,
    Name,
    Natural,
    NonNegative,
    OneOf,
    Positive,
    Rate,
    check_fields,
)
from goat_jax.validation.renamed import check_present

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The pretrained model.

    Attributes:
        path: the folder of a Hugging Face checkpoint, or ``package:NAME``.
        dtype: the dtype of the frozen weights and the computation; adapters are always float32.
        remat: the rematerialization policy of the backward pass, a key of
            `goat_jax.nn.stack.REMAT`.
        quantize: the quantization of the frozen kernels after the adapters are initialized: a key
            of `goat_jax.nn.quantized_kernel.KINDS` (the extra `quant`), or "none".
        dropout: the dropout rate inside the pretrained model in training: one rate for every place
            with dropout in its torch model, or "checkpoint" for the rates in config.json, which
            transformers uses in training. Text encoders only; other models have no dropout.
            `adapter.dropout` is separate.
        attention: the way to compute attention: "auto" takes the device's fused kernel (cuDNN on
            NVIDIA GPUs, splash on TPUs) where it can do what the model needs, else plain scores up
            to 1,024 tokens and blocks beyond; or a key of `goat_jax.nn.attention.WAYS`.
        options: fields of the model architecture's config, such as {"pooling": "mean"}.
        add_tokens: tokens to add to the vocabulary, such as "<think>,</think>"; a comma separates
            two. Each starts at the mean of the pretrained ones, and its vector is trained. One that
            the tokenizer has already keeps its vector as the start.
    """

    path: Name
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    remat: Annotated[str, OneOf(REMAT)] = "none"
    quantize: Annotated[str, OneOf(("none", *QUANTIZED))] = "none"
    dropout: Rate | Annotated[str, OneOf((CHECKPOINT,))] = 0.0
    attention: Annotated[str, OneOf((AUTO, *WAYS))] = AUTO
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    add_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        tokens = [token for word in self.add_tokens for token in word.split(",")]
        for token in tokens:
            if not token.strip() or tokens.count(token) > 1:
                raise UserError(f"model.add_tokens has {token!r}: give each token once, not empty")
        object.__setattr__(self, "add_tokens", tuple(tokens))
        if "dropout" in self.options:
            raise UserError("model.options contains dropout: give it as model.dropout")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The method and its target modules. A field that is None keeps the method's default.

    Attributes:
        method: the name of the method, a key of `METHODS`.
        target_modules: the modules with adapters: "all-linear", a regular expression over module
            names, or a list of suffixes.
        modules_to_save: suffixes of the modules trained in full; "task-head" means all modules of
            the model's head, by whatever names.
        total_rank: the rank of all experts together.
        num_experts: the number of experts.
        top_k: the number of experts per token, for top-k routers.
        alpha: LoRA's alpha, for scale rules that have one.
        dropout: the dropout rate on the adapter's input.
        dropout_per_expert: whether each expert has a separate dropout mask.
        aux_weight: the weight of the auxiliary loss.
        whole_model: whether everything without an adapter is trained too, as in `full` and
            `full_moe`.
        scale: the name of the scale rule.
        segments: the name of the choice of SVD segments.
        rho: the damping of initial factors from SVD segments.
        eta: the learning rate of full fine-tuning divided by that of the adapter, for the scale
            rule `theory`.
        reference_code: whether to use the auxiliary loss of the published code.
        count_padding: whether padding counts in the auxiliary loss, as in the published code.
        options: further options of the method, and other parts, by name. Command lines and sweeps
            give each one as ``adapter.NAME`` (`goat-jax methods` lists them).
        defaults: options applied only if a part of the method has them and no other value is given,
            such as the paper's eta for LLaMA, which only some scale rules use.
        forward_scale: the scale that stays in the forward pass; the optimizer compensates for the
            rest (`optim.scaling_alignment`). None keeps the complete scale there, as published.
        overrides: different options for some modules.
        trainable_token_indices: numbers of tokens whose vectors are trained, in the table and, if
            it is separate, in the output, besides `model.add_tokens`.
    """

    method: str = "goat"
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    modules_to_save: tuple[str, ...] = ("classifier",)
    total_rank: Count | None = None
    num_experts: Count | None = None
    top_k: Count | None = None
    alpha: float | None = None
    dropout: Rate | None = None
    dropout_per_expert: bool | None = None
    aux_weight: NonNegative | None = None
    whole_model: bool | None = None
    scale: str | None = None
    segments: str | None = None
    rho: Positive | None = None
    eta: Positive | None = None
    reference_code: bool | None = None
    count_padding: bool | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    forward_scale: Positive | None = None
    overrides: tuple[Override, ...] = ()
    trainable_token_indices: tuple[Natural, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "adapter.")
        if not self.target_modules:
            raise UserError("adapter.target_modules is empty: name modules, or give all-linear")
        if isinstance(self.target_modules, str):
            check_regex("adapter.target_modules", self.target_modules)
        for name in self.defaults:  # an option that no part has is otherwise left out
            check_present(f"adapter.{name}")
        spec = self.spec()
        for override in self.overrides:
            override.spec(spec)

    def spec(self) -> AdapterSpec:
        """Returns the method's spec with these options.

        Raises:
            UserError: an unknown method or option, or values that do not fit together.

        >>> AdapterConfig("goat", total_rank=32, rho=5.0).spec().rank
        4
        """
        method_fields = {
            "method",
            "target_modules",
            "modules_to_save",
            "overrides",
            "options",
            "defaults",
            "forward_scale",
            "trainable_token_indices",
        }
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in method_fields and getattr(self, field.name) is not None
        }
        options |= self.options
        spec = method_spec(self.method, **options)
        unset = {name: self.defaults[name] for name in self.defaults if name not in options}
        spec = spec.replace(**{n: v for n, v in unset.items() if spec.has_option(n)})
        if self.forward_scale is not None and not spec.is_plain_sum:
            raise UserError(
                "forward_scale needs an adapter that adds s a b to the layer, which "
                f"{self.method} does not"
            )
        return spec


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Configuration of one training run.

    Attributes:
        model: the pretrained model.
        task: the task to train on, and its data.
        adapter: the method and its target modules.
        optimizer: the learning rate, schedule and constants of AdamW.
        train: the settings of the training loop.
        mesh: the devices and the sharding.
        svd: the computation and caching of SVDs for initialization.
        logging: the settings of monitoring.
        out: the run folder; a run that exists there is continued.
    """

    model: ModelConfig
    task: Task
    adapter: AdapterConfig = AdapterConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    svd: SvdConfig = SvdConfig()
    logging: LoggingConfig = LoggingConfig()
    out: Name = "runs/run"

    def __post_init__(self) -> None:
        check_fields(self)
        traced = self.logging.profiled_steps()
        steps = self.train.steps
        if traced and steps is not None and traced.start > steps:
            raise UserError(
                f"logging.profile {self.logging.profile!r} traces no step: the run has {steps} "
                "steps"
            )
        if self.train.best_by is not None:
            check_choice("train.best_by", self.train.best_by, (*self.task.metrics, "loss"))

    def over(self, rows: int) -> RunConfig:
        """Returns the config with the number of steps that its epochs take over `rows` rows."""
        return dataclasses.replace(self, train=self.train.over(rows))

    @property
    def best_by(self) -> str:
        """The metric that selects the best checkpoint."""
        return self.train.best_by or self.task.metrics[0]


FREE_TO_CHANGE = (
    "out",
    "model.path",
    "model.remat",
    "model.attention",
    "task.data_dir",
    "train.eval_every",
    "train.save_every",
    "train.log_every",
    "train.data_threads",
    "train.eval_batch_size",
    "train.early_stopping_patience",
    "train.grace_seconds",
    "train.save_errors",
    "train.changed_rows",
    "svd.folder",
    "svd.keep",
    *(f"logging.{field.name}" for field in dataclasses.fields(LoggingConfig)),
    *(f"mesh.{field.name}" for field in dataclasses.fields(MeshConfig)),
    *(f"mesh.rules.{field.name}" for field in dataclasses.fields(Rules)),
)
"""Fields that may change when a run is continued, because its numbers do not depend on them, except
for the order of sums on another mesh or in another way of attention."""
