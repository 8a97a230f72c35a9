"""`RunConfig`: the complete configuration of a run, from config files, overrides or JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp

from goat_jax.adapters.methods import method_spec
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.config.train import LoggingConfig, TrainConfig
from goat_jax.data.tasks.registry import KINDS, Task
from goat_jax.errors import UserError, nearest_name
from goat_jax.injection.inject import ALL_LINEAR, Override
from goat_jax.injection.svd_cache import SvdConfig
from goat_jax.injection.targets import check_regex
from goat_jax.nn.dropout import CHECKPOINT
from goat_jax.nn.quantized_kernel import KINDS as QUANTIZED
from goat_jax.nn.stack import REMAT
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.registry import REGISTRY
from goat_jax.sharding.config import MeshConfig, Rules
from goat_jax.typing import Dataclass, is_record
from goat_jax.validation.checks import check_choice
from goat_jax.validation.fields import (
    Count,
    Name,
    NonNegative,
    OneOf,
    Positive,
    Rate,
    call,
    check_fields,
    field_types,
    made,
    read_value,
)
from goat_jax.validation.renamed import check_present, hint_in_error, present_names

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
        options: fields of the model architecture's config, such as {"pooling": "mean"}.
    """

    path: Name
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    remat: Annotated[str, OneOf(REMAT)] = "none"
    quantize: Annotated[str, OneOf(("none", *QUANTIZED))] = "none"
    dropout: Rate | Annotated[str, OneOf((CHECKPOINT,))] = 0.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        if "dropout" in self.options:
            raise UserError("model.options has dropout: give it as model.dropout")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The method and its target modules. A field that is None keeps the method's default.

    Attributes:
        method: the name of the method, a key of `METHODS`.
        target_modules: the modules with adapters: "all-linear", a regular expression over module
            names, or a list of suffixes.
        modules_to_save: suffixes of the modules trained in full, such as the task head.
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

    def __post_init__(self) -> None:
        check_fields(self, "adapter.")
        if not self.target_modules:
            raise UserError("adapter.target_modules is empty: name modules, or all-linear")
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
        own = {
            "method",
            "target_modules",
            "modules_to_save",
            "overrides",
            "options",
            "defaults",
            "forward_scale",
        }
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
        if self.model.quantize != "none" and not self.mesh.single:
            raise UserError("model.quantize is for one device: leave mesh as it is")
        traced = self.logging.profiled_steps()
        if traced and traced.start > self.train.steps:
            raise UserError(
                f"logging.profile {self.logging.profile!r} would trace nothing: the run has "
                f"{self.train.steps} steps"
            )
        if self.train.best_by is not None:
            check_choice("train.best_by", self.train.best_by, (*self.task.metrics, "loss"))

    @property
    def best_by(self) -> str:
        """The metric that selects the best checkpoint."""
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
for the order of sums on another mesh."""


def flatten(config: Dataclass, prefix: str = "") -> dict[str, Any]:
    """Returns every field of a config by its dotted name, as JSON values.

    >>> flatten(OptimizerConfig())["schedule"]
    'cosine'
    """
    values: dict[str, Any] = {}
    if type(config) in KINDS.values():
        values[prefix + "kind"] = next(k for k, kind in KINDS.items() if kind is type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if is_record(value):
            values |= flatten(value, name + ".")
        else:
            values[name] = json.loads(json.dumps(value, default=_as_json))
    return values


def _as_json(value: object) -> Any:
    if is_record(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def load_config(source: str) -> RunConfig:
    """Runs ``get_config(**options)`` of a config file.

    Args:
        source: ``FILE.py`` or ``FILE.py:option=value,...``; a value is read as JSON, or else as
            text.

    Raises:
        UserError: the file does not exist, raises an error or has no ``get_config``, or an option
            is unknown or not valid.
    """
    path, _, rest = source.partition(":")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"config file {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"goat_jax_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path} is no Python file: its name ends in .py")
    module = importlib.util.module_from_spec(spec)
    with _errors_of(path):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config: see configs/ for examples")
    options = parse_options(rest)
    with _errors_of(path):
        config = call(module.get_config, options, path)
    if not isinstance(config, RunConfig):
        raise UserError(f"{path}: get_config returns no RunConfig but a {type(config).__name__}")
    return config


@contextlib.contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Converts any error of a config file's code to a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
        line = getattr(error, "lineno", line)
        what = " ".join(str(error).split()) + hint_in_error(str(error))
        where = path if line is None else f"{path}, line {line}"
        raise UserError(f"{where}: {type(error).__name__}: {what}") from error


def parse_options(text: str) -> dict[str, Any]:
    """Parses ``"task=rte,rank=8"`` to a dict; values are read as JSON, or else as strings.

    A comma inside a JSON list, object or string does not end a value.

    Raises:
        UserError: an option is not of the form name=value, or is given twice.

    >>> parse_options("task=rte,rank=8")
    {'task': 'rte', 'rank': 8}
    >>> parse_options('target_modules=["query", "key"],rho=5')
    {'target_modules': ['query', 'key'], 'rho': 5}
    """
    options: dict[str, Any] = {}
    while text:
        name, equals, rest = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise UserError(f"option {text.partition(',')[0]!r} is not of the form name=value")
        if name in options:
            raise UserError(f"option {name} is given twice")
        value, text = _first_value(rest)
        options[name] = read_value(value)
    return options


def _first_value(text: str) -> tuple[str, str]:
    """Splits comma-separated values into the text of the first one and the text after its comma."""
    if text[:1] in ("[", "{", '"'):
        try:
            end = json.JSONDecoder().raw_decode(text)[1]
        except (ValueError, RecursionError):
            end = 0
        if end and text[end : end + 1] in ("", ","):
            return text[:end], text[end + 1 :]
    value, _, after = text.partition(",")
    return value, after


class _Group(dict[str, Any]):
    """Values for the fields of a nested config, by name."""


def with_fields(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Returns the config with the values of some fields replaced.

    Args:
        config: the config to start from.
        values: the new values by the fields' dotted names. ``adapter.NAME`` may also be an option
            of the method or of one of its parts, and ``model.options.NAME`` a key of a mapping.

    Raises:
        UserError: an unknown field, or a value that is not valid.

    >>> from goat_jax.data.tasks.registry import reviews
    >>> config = RunConfig(ModelConfig("m"), reviews())
    >>> with_fields(config, {"adapter.method": "lora_dash", "adapter.change_step": 20}).adapter
    ... # doctest: +ELLIPSIS
    AdapterConfig(method='lora_dash', ... options={'change_step': 20}, ...)
    """
    tree = _Group()
    for name, value in values.items():
        check_present(name)
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            inner = place.setdefault(group, _Group())
            if not isinstance(inner, _Group):
                raise UserError(f"{name} is given, and {group} as a whole: give one of them")
            place = inner
        place[last] = value
    return _replaced(config, tree, "")


def _replaced(config: Any, tree: Mapping[str, Any], prefix: str) -> Any:
    known = [field.name for field in dataclasses.fields(config)]
    changes: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in tree.items():
        if name in known:
            changes[name] = _replaced_value(getattr(config, name), value, prefix + name)
        elif isinstance(config, AdapterConfig) and is_method_option(name, config):
            others[name] = value
        else:
            raise unknown_field(config, prefix, name)
    if others:
        changes["options"] = {**config.options, **changes.get("options", {}), **others}
    return dataclasses.replace(config, **changes)


def _replaced_value(now: object, value: object, name: str) -> Any:
    if is_record(now):
        if not isinstance(value, _Group):
            fields = ", ".join(field.name for field in dataclasses.fields(now))
            raise UserError(f"{name} is a group of fields: give one of them by name ({fields})")
        return _replaced(now, value, name + ".")
    if isinstance(now, Mapping) and isinstance(value, Mapping):
        return {**now, **value}
    if isinstance(value, _Group):
        raise UserError(f"{name} has no fields of its own, such as {next(iter(value))}")
    return value


def unknown_field(config: Dataclass, prefix: str, name: str) -> UserError:
    """Makes the error for an unknown field of a config, or of a config nested in it."""
    own = {field.name: prefix + field.name for field in dataclasses.fields(config)}
    if isinstance(config, AdapterConfig):
        own |= {option: prefix + option for option in method_options()}
    if isinstance(config, RunConfig):  # also suggest a nested field given without its group
        own = {dotted.rpartition(".")[2]: dotted for dotted in field_kinds(config)} | own
    match = nearest_name(name, own)
    hint = f" (did you mean {own[match]!r}?)" if match else ""
    return UserError(
        f"the config has no field {prefix + name!r}{hint}: goat-jax train --config FILE "
        "--help-fields lists them"
    )


def field_kinds(config: Dataclass, prefix: str = "") -> dict[str, Any]:
    """Returns the type of every field by its dotted name.

    >>> list(field_kinds(MeshConfig(), "mesh."))[-2:]
    ['mesh.rules.inner', 'mesh.rules.vocab']
    """
    kinds: dict[str, Any] = {}
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if is_record(value):
            kinds |= field_kinds(value, f"{prefix}{name}.")
        else:
            kinds[prefix + name] = kind
    return kinds


def is_method_option(name: str, adapter: AdapterConfig) -> bool:
    """True if any registered part, or a part of the adapter's spec, has an option of this name."""
    return name in method_options() or adapter.spec().has_option(name)


def method_options() -> dict[str, list[type]]:
    """Returns the options of all registered parts, each with the classes of parts that have it.

    The kinds of parts, such as ``router``, are options too: their value is a part's name.

    >>> [part.__name__ for part in method_options()["rho"]]
    ['SvdSegments']
    """
    found: dict[str, list[type]] = {kind: [] for kind in REGISTRY}
    for named in REGISTRY.values():
        for part in named.values():
            for field in dataclasses.fields(part):
                found.setdefault(field.name, []).append(part)
    return found


def config_from_json(values: Mapping[str, Any]) -> RunConfig:
    """Makes the `RunConfig` from the output of `flatten`: JSON values by dotted names.

    Former names, which files of earlier versions have, are read as the present ones.

    Raises:
        UserError: an unknown field, a missing one, or a value that is not valid.

    >>> from goat_jax.data.tasks.registry import reviews
    >>> config = RunConfig(ModelConfig("m", options={"pooling": "mean"}), reviews())
    >>> config_from_json(flatten(config)) == config
    True
    """
    if not isinstance(values, Mapping):
        raise UserError(f"config {values!r} is not valid: give values by name")
    tree: dict[str, Any] = {}
    for name, value in present_names(values).items():
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UserError(f"config has {group} both as a value and as a group of fields")
        place[last] = _tuples(value)
    task = tree.get("task")
    if not isinstance(task, dict):
        raise UserError("config has no task.kind, which it needs")
    kind = task.pop("kind", None)
    check_choice("task.kind", kind, KINDS)
    return made("config", RunConfig, tree | {"task": made("task", KINDS[kind], task)})


def _tuples(value: object) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
