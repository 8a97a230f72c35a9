"""Tuner of routed adapters for PEFT: the adapted layer and model, and their registration."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft import mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from goat_jax.torch.config import TYPE, GoatConfig
from goat_jax.torch.experts import Experts, Inputs
from goat_jax.torch.start import start_from_svd
from goat_jax.validation.base_samples import COUNT, other_base, places

EXTRA = ("tasks", "task_types")
"""Arguments of the model that the adapters alone read; PEFT itself takes task_ids out."""


class GoatLinear(nn.Module, BaseTunerLayer):
    """Linear layer with routed adapters, by their names."""

    adapter_layer_names = ("goat_experts",)

    def __init__(self, base_layer: nn.Linear, inputs: Inputs):
        super().__init__()
        self.base_layer = base_layer
        self.goat_experts = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.inputs = inputs

    def update_layer(self, name: str, config: GoatConfig) -> None:
        """Adds an adapter, with trained arrays in float32."""
        base: Any = self.get_base_layer()
        experts = Experts(base.in_features, base.out_features, config).to(base.weight.device)
        if not config.loaded:
            experts.get_buffer("base_sample").copy_(self.base_sample())
            if config.init == "svd":
                start_from_svd(experts, base.weight)
        self.goat_experts[name] = experts
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def base_sample(self) -> Tensor:
        """Returns samples of the base's weight; zeros if it is quantized, or not here whole."""
        base: Any = self.get_base_layer()
        weight: Tensor = base.weight.detach()
        whole = type(weight) is Tensor and weight.shape == (base.out_features, base.in_features)
        wide = weight.is_floating_point() and weight.itemsize > 1
        if not (whole and wide) or weight.is_meta:
            return torch.zeros(COUNT)
        rows, columns = zip(*places(*weight.shape), strict=True)
        return weight[list(rows), list(columns)].float().cpu()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(
            "a router weighs the experts token by token, so no single weight equals this adapter: "
            "keep it as an adapter"
        )

    def unmerge(self) -> None:
        """Does nothing, because nothing can be merged."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name in self.goat_experts:
                y = y + self.goat_experts[name](x, self.inputs).to(y.dtype)
        return y


class GoatModel(BaseTuner):
    """Model with routed adapters; a batch may have ``tasks`` and ``task_types`` (B,).

    Attributes:
        tasks: the tasks (B,) of batches that have none, such as those of ``generate``; or None.
    """

    prefix = "goat_"
    tuner_layer_cls = GoatLinear
    tasks: Tensor | None = None
    target_module_mapping = {}  # noqa: RUF012  (declared so by PEFT)

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if not hasattr(self, "inputs"):
            self.inputs = Inputs()
            model.register_forward_pre_hook(self._keep_inputs, with_kwargs=True)

    def _keep_inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Keeps the inputs that adapters read, and takes those out that the model does not know."""
        mask = kwargs.get("attention_mask")
        self.inputs.mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        self.inputs.tasks = kwargs.get("tasks", self.tasks)
        self.inputs.task_types = kwargs.get("task_types")
        return args, {name: value for name, value in kwargs.items() if name not in EXTRA}

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        """Refuses an adapter for each row of a batch, which PEFT would drop without a word."""
        if adapter_names is not None:
            raise ValueError(
                "adapter_names: all rows of a batch have the active adapter here; call set_adapter "
                "and the model once for each adapter"
            )
        yield

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Returns the name of an array in a file by its name in the model."""
        return key.replace(f".goat_experts.{adapter_name}.", ".goat_experts.", 1)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns a file's arrays by their names in the model, after checking all of them.

        Raises:
            ValueError: arrays are missing, unknown, of another shape or not finite, or belong to
                another base model. A new adapter is then taken out again, and one that was there
                before keeps its numbers.
        """
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        own = _base_samples(model, adapter_name)
        stored = {key: found.setdefault(key, torch.zeros(COUNT)) for key in own}
        problem = _problem(model, adapter_name, found)
        if problem is None and not config.other_base:
            problem = _other_base(stored, own)
        narrow = {str(array.dtype) for array in found.values() if array.itemsize < 4}
        if narrow and problem is None:
            warnings.warn(
                f"adapter {adapter_name!r} is stored in {', '.join(sorted(narrow))}: its outputs "
                "are rounded",
                stacklevel=2,
            )
        if problem is not None:
            _take_out_if_new(model, adapter_name)
            raise ValueError(f"adapter {adapter_name!r} cannot be loaded: {problem}")
        return found

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = peft_config.of_module(current_key)
        if isinstance(target, GoatLinear):
            target.update_layer(adapter_name, config)
            return
        if not isinstance(target, nn.Linear):
            raise ValueError(
                f"{current_key} is a {type(target).__name__}: routed adapters are for nn.Linear"
            )
        layer = GoatLinear(target, self.inputs)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, config)
        self._replace_module(parent, target_name, layer, target)


def _problem(model: nn.Module, name: str, found: dict[str, Tensor]) -> str | None:
    """Describes what is wrong with the arrays of an adapter, or returns None."""
    here, own = ".goat_experts.", f".goat_experts.{name}."
    expected = {key: array for key, array in model.state_dict().items() if own in key}
    for key, array in expected.items():
        short = key.replace(own, here)
        if key not in found:
            return f"the file has no {short}"
        if found[key].shape != array.shape:
            return (
                f"{short} is {tuple(found[key].shape)} in the file, and {tuple(array.shape)} by "
                "the adapter's config and this base model: one of them is another one"
            )
    for key, array in found.items():
        if here in key and key not in expected:
            return f"the file has {key}, and this base model no such adapter"
        if not array.is_floating_point():
            return f"{key.replace(own, here)} is stored as {array.dtype}: save it in float32"
        if not array.isfinite().all():
            return f"{key.replace(own, here)} is not finite"
    return None


def _base_samples(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Returns samples of the weights under an adapter, by the names that a file has for them."""
    return {
        f"{module}.goat_experts.{name}.base_sample": layer.base_sample()
        for module, layer in model.named_modules()
        if isinstance(layer, GoatLinear) and name in layer.goat_experts
    }


def _other_base(stored: dict[str, Tensor], own: dict[str, Tensor]) -> str | None:
    """Describes how the base model is another one than an adapter's, or returns None."""
    problem = other_base(*({k: v.tolist() for k, v in each.items()} for each in (stored, own)))
    advice = "load that one, or set other_base=True in its config if this is intended"
    return problem and f"{problem}: {advice}"


def _take_out_if_new(model: Any, name: str) -> None:
    """Takes out an adapter that nothing was loaded into or trained yet."""
    layers = [layer for layer in model.modules() if isinstance(layer, GoatLinear)]
    own: list[Any] = [each.goat_experts[name] for each in layers if name in each.goat_experts]
    weights = [experts.expert_b.weight for experts in own]
    if any(not weight.is_meta and weight.any() for weight in weights):
        return
    if len(model.peft_config) > 1:
        model.delete_adapter(name)
    else:
        model.base_model.unload()


def aux_loss(model: nn.Module) -> Tensor:
    """Returns the weighted balance loss of the last forward pass in training mode, a scalar.

    Add it to the loss of the task:

        loss = model(**batch).loss + goat_jax.torch.aux_loss(model)

    Args:
        model: a model with routed adapters, bare or in a `PeftModel`.

    Raises:
        ValueError: there was no forward pass in training mode.
    """
    losses = [
        experts.config.aux_weight * experts.aux_loss
        for layer in model.modules()
        if isinstance(layer, GoatLinear) and not layer.disable_adapters
        for name, experts in layer.goat_experts.items()
        if name in layer.active_adapters
        and isinstance(experts, Experts)
        and experts.aux_loss is not None
    ]
    if not losses:
        raise ValueError(
            "no routed adapter has seen a batch: call the model in training mode first"
        )
    return torch.stack(losses).sum()


def register() -> None:
    """Makes the tuner known to PEFT, whose own registration takes its own types only."""
    tables: Any = mapping
    tables.PEFT_TYPE_TO_PREFIX_MAPPING[TYPE] = GoatModel.prefix
    tables.PEFT_TYPE_TO_CONFIG_MAPPING[TYPE] = GoatConfig
    tables.PEFT_TYPE_TO_TUNER_MAPPING[TYPE] = GoatModel
