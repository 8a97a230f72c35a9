"""`RunConfig`: everything a run is made of, and how config files and overrides become one."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from goat_jax.adapters.methods import method_spec
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.data.tasks import KINDS, Task
from goat_jax.errors import UserError, nearest
from goat_jax.inject import ALL_LINEAR, Override
from goat_jax.mesh.config import MeshConfig, Rules
from goat_jax.models.dropout import CHECKPOINT, check_rate
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.quantized import KINDS as QUANTIZED
from goat_jax.svd_store import SvdConfig
from goat_jax.train_config import TrainConfig, WatchConfig

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The pretrained model.

    Attributes:
        path: folder of a Hugging Face checkpoint.
        dtype: of the frozen weights and the computation; adapters are always float32.
        remat: what the backward pass recomputes: a key of `goat_jax.stack.REMAT`.
        quantize: bits of the frozen kernels once the adapters are started: a key of
            `goat_jax.quantized.KINDS` (the extra `quant`), or "none".
        dropout: of the model's own in training: one rate for every place where its torch model
            drops something, or "checkpoint" for the rates in config.json, with which transformers
            trains; text encoders only, others have nothing there. `adapter.dropout` is another.
        options: fields of the model's own config, such as {"pooling": "mean"}.
    """

    path: str
    dtype: str = "float32"
    remat: str = "none"
    quantize: str = "none"
    dropout: float | str = 0.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.quantize not in ("none", *QUANTIZED):
            kinds = ", ".join(("none", *QUANTIZED))
            raise UserError(f"model.quantize {self.quantize!r} is not one of {kinds}")
        if self.dropout != CHECKPOINT:
            check_rate(self.dropout)
        if "dropout" in self.options:
            raise UserError("model.options has dropout: give it as model.dropout")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The method and where it goes. What is None stays as the method has it.

    Attributes:
        method: a row of METHODS.
        targets: "all-linear", a regular expression over module names, or a list of suffixes.
        train: modules trained in full, by suffix: the task head.
        total_rank, num_experts, top_k, alpha, dropout, dropout_per_expert, aux_weight: sizes.
        whole_model: whether all that has no adapter is trained, too; `full` and `full_moe` do so.
        scale: scale rule by name.  choice: SVD segments by name.
        rho, eta, published, count_padding: options of the method's parts.
        options: further options of the method's parts by name (`goat-jax methods` names them).
        defaults: options for those of the resulting parts that have them and are given no other
            value, such as the paper's eta for LLaMA, which only some scale rules use.
        forward_scale: what of the scale stays in the forward pass; the optimizer makes up for the
            rest (`optim.scaling_alignment`). None leaves all of it there, as published.
        overrides: other options for some modules.
    """

    method: str = "goat"
    targets: str | tuple[str, ...] = ALL_LINEAR
    train: tuple[str, ...] = ("classifier",)
    total_rank: int | None = None
    num_experts: int | None = None
    top_k: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    dropout_per_expert: bool | None = None
    aux_weight: float | None = None
    whole_model: bool | None = None
    scale: str | None = None
    choice: str | None = None
    rho: float | None = None
    eta: float | None = None
    published: bool | None = None
    count_padding: bool | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    forward_scale: float | None = None
    overrides: tuple[Override, ...] = ()

    def spec(self) -> AdapterSpec:
        """The method with these options; UserError if they do not fit it.

        >>> AdapterConfig("goat", total_rank=32, rho=5.0).spec().rank
        4
        """
        own = {"method", "targets", "train", "overrides", "options", "defaults", "forward_scale"}
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in own and getattr(self, field.name) is not None
        }
        options |= self.options
        spec = method_spec(self.method, **options)
        unset = {name: self.defaults[name] for name in self.defaults if name not in options}
        spec = spec.replace(**{n: v for n, v in unset.items() if spec.has_option(n)})
        if self.forward_scale is not None and not spec.is_plain_sum:
            raise UserError(
                f"forward_scale needs an adapter that is a sum of s a b: {self.method} is none"
            )
        return spec


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run.

    Attributes:
        model, task, adapter, optimizer, train, mesh, svd, watch: its parts.
        out: the run folder; a run that exists there is continued.
    """

    model: ModelConfig
    task: Task
    adapter: AdapterConfig = AdapterConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    svd: SvdConfig = SvdConfig()
    watch: WatchConfig = WatchConfig()
    out: str = "runs/run"

    def __post_init__(self) -> None:
        if self.model.quantize != "none" and not self.mesh.single:
            raise UserError("model.quantize is for one device: leave mesh as it is")

    @property
    def best_by(self) -> str:
        """The metric that marks the best checkpoint."""
        return self.train.best_by or self.task.metrics[0]


FREE_TO_CHANGE = (
    "out",
    "model.path",
    "model.remat",
    "task.data_dir",
    "train.eval_every",
    "train.save_every",
    "train.log_every",
    "train.eval_batch_size",
    "train.patience",
    "train.grace_seconds",
    "train.save_errors",
    "svd.folder",
    "svd.keep",
    *(f"watch.{field.name}" for field in dataclasses.fields(WatchConfig)),
    *(f"mesh.{field.name}" for field in dataclasses.fields(MeshConfig)),
    *(f"mesh.rules.{field.name}" for field in dataclasses.fields(Rules)),
)
"""Fields that a continued run may change, since its numbers do not depend on them (on the mesh by
no more than the order of sums)."""


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field of a config by its dotted name, as JSON values.

    >>> flatten(OptimizerConfig())["schedule"]
    'cosine'
    """
    values: dict[str, Any] = {}
    if type(config) in KINDS.values():
        values[prefix + "kind"] = next(k for k, kind in KINDS.items() if kind is type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            values |= flatten(value, name + ".")
        else:
            values[name] = json.loads(json.dumps(value, default=_as_json))
    return values


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def load_config(source: str) -> RunConfig:
    """Runs ``get_config(**options)`` of a config file.

    Args:
        source: ``FILE.py`` or ``FILE.py:option=value,...``; values are JSON where they can be.

    Raises:
        UserError: no such file, no ``get_config`` in it, or an option it does not have.
    """
    path, _, rest = source.partition(":")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"config file {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"goat_jax_config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config: see configs/ for examples")
    return call_with_options(module.get_config, parse_options(rest), path)


def parse_options(text: str) -> dict[str, Any]:
    """``"task=rte,rank=8"`` as a dict; values are read as JSON, or else as strings.

    >>> parse_options("task=rte,rank=8")
    {'task': 'rte', 'rank': 8}
    """
    options = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"config option {item!r} is not of the form name=value")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def call_with_options(function: Any, options: Mapping[str, Any], where: str) -> Any:
    """``function(**options)``, with one clear line for an option it does not take."""
    code = function.__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    for name in options:
        if name not in known:
            raise UserError(
                f"{where} has no option {name!r}{nearest(name, known)}; "
                f"it takes: {', '.join(known) or 'none'}"
            )
    return function(**options)


def config_from_json(values: Mapping[str, Any]) -> RunConfig:
    """The `RunConfig` that `flatten` wrote: dotted names -> JSON values.

    >>> from goat_jax.data.tasks import reviews
    >>> config = RunConfig(ModelConfig("m", options={"pooling": "mean"}), reviews())
    >>> config_from_json(flatten(config)) == config
    True
    """
    parts: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    for name, value in values.items():
        part, dot, field = name.partition(".")
        if dot:
            parts.setdefault(part, {})[field] = _tuples(value)
        else:
            own[part] = value
    adapter = parts["adapter"]
    adapter["overrides"] = tuple(Override(**each) for each in adapter["overrides"])
    task = KINDS[parts["task"].pop("kind")]
    return RunConfig(
        model=ModelConfig(**parts["model"]),
        task=task(**parts["task"]),
        adapter=AdapterConfig(**adapter),
        optimizer=OptimizerConfig(**parts["optimizer"]),
        train=TrainConfig(**parts["train"]),
        mesh=_mesh_from(parts.get("mesh", {})),
        svd=SvdConfig(**parts.get("svd", {})),
        watch=WatchConfig(**parts.get("watch", {})),
        **own,
    )


def _mesh_from(values: Mapping[str, Any]) -> MeshConfig:
    start = "rules."
    rules = {name.removeprefix(start): v for name, v in values.items() if name.startswith(start)}
    sizes = {name: value for name, value in values.items() if not name.startswith(start)}
    return MeshConfig(**sizes, rules=Rules(**rules))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
