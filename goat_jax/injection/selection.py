"""Selects the modules that are adapted, with the spec of each; splits stacks where they differ."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from goat_jax.adapters.spec import OF_THE_RUN, AdapterSpec
from goat_jax.errors import UserError
from goat_jax.injection.targets import (
    ALL_LINEAR,
    TASK_HEAD,
    Targets,
    check_all_match,
    check_regex,
    matches,
    trains,
)
from goat_jax.nn.dense import Adaptable
from goat_jax.nn.named_modules import ModuleRef, find_modules, find_stacks
from goat_jax.nn.stack import Stack
from goat_jax.validation.fields import check_fields


@dataclasses.dataclass(frozen=True)
class Override:
    """Other sizes or options for some modules.

    Attributes:
        modules: a regular expression or a list of suffixes, as for targets. Layers are named by
            their number, so a range of layers is ``r".*layer\\.[0-5]\\..*"``.
        options: options of `methods.method_spec`, such as total_rank, num_experts, alpha, eta and
            scale, except those that apply to the whole run (`adapters.spec.OF_THE_RUN`).
    """

    modules: str | tuple[str, ...]
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_fields(self, "override ")
        if isinstance(self.modules, str):
            check_regex("override", self.modules)

    def spec(self, spec: AdapterSpec) -> AdapterSpec:
        """Returns the spec of these modules.

        Args:
            spec: the spec of all other modules.

        Raises:
            UserError: an option that the method does not have or that does not fit it, or one that
                applies to the whole run.
        """
        changed = spec.replace(**self.options)
        for field in OF_THE_RUN:
            if getattr(changed, field) != getattr(spec, field):
                names = self.modules if isinstance(self.modules, str) else list(self.modules)
                raise UserError(
                    f"an override of {names!r} changes {field}, which applies to the whole "
                    "run: set it for the adapter, not for single modules"
                )
        return changed


def check_choices(
    model: nnx.Module,
    spec: AdapterSpec,
    target_modules: Targets,
    overrides: Sequence[Override] = (),
    modules_to_save: Targets = (),
) -> None:
    """Checks the arguments of `inject`; it reads shapes alone, so weights may be abstract.

    Raises:
        UserError: as `inject`, except for a module that has an adapter already.
    """
    refs = find_modules(model)
    names = [name for ref in refs for name in ref.names()]
    every = [name for ref in with_parameters(model) for name in ref.names()]
    check_all_match(names, "target", target_modules)
    modules_to_save = with_head(model, modules_to_save)
    check_all_match(every, "module to train", modules_to_save, trains, "module")
    for override in overrides:
        check_all_match(names, "override", override.modules)
    if target_modules == ALL_LINEAR:
        target_modules = in_blocks(model)
    reasons = set()
    for ref in refs:
        for name in ref.names():
            if trains(name, modules_to_save):
                continue
            chosen, reason = choose(ref, name, spec, target_modules, overrides)
            if chosen is not None:
                return
            reasons.add(reason)
    raise UserError(f"no module could be adapted: {'; '.join(sorted(reasons))}")


def with_head(model: nnx.Module, modules: Targets) -> Targets:
    """Returns modules to train with the names of the model's task head for "task-head"."""
    given = [modules] if isinstance(modules, str) else list(modules)
    if TASK_HEAD not in given:
        return modules
    head = getattr(model, "head_modules", ())
    return [*(name for name in given if name != TASK_HEAD), *head]


def in_blocks(model: nnx.Module) -> list[str]:
    """Names every linear layer of the blocks, as the paper adapts, or of a model without blocks.

    Layers of a mixture's experts are not among them, as in PEFT: targets have to name them.
    """
    every = find_modules(model)
    refs = [ref for ref in every if ref.experts is None and ref.module.vocabulary_axis is None]
    blocks = [ref for ref in refs if ref.layers is not None] or refs
    return [name for ref in blocks for name in ref.names()]


def _resolve(name: str, spec: AdapterSpec, overrides: Sequence[Override]) -> AdapterSpec:
    for override in overrides:
        if matches(name, override.modules):
            return override.spec(spec)
    return spec


def choose(
    ref: ModuleRef[Adaptable],
    name: str,
    spec: AdapterSpec,
    target_modules: Targets,
    overrides: Sequence[Override],
) -> tuple[AdapterSpec | None, str]:
    """Returns a module's spec, or None and the reason why it gets no adapter."""
    if not matches(name, target_modules):
        return None, "not a target"
    module_spec = _resolve(name, spec, overrides)
    smaller = min(ref.module.kernel.shape[-2:])
    if module_spec.total_rank > smaller:
        return None, f"total rank {module_spec.total_rank} is above its smaller side {smaller}"
    return ref.module.spec_for(module_spec)


def cut_stacks(
    model: nnx.Module,
    spec: AdapterSpec,
    target_modules: Targets,
    overrides: Sequence[Override],
    modules_to_save: Targets,
) -> None:
    """Splits every stack where the choice for any of its modules changes between layers."""
    for stack in find_stacks(model):
        inside = [s for s in find_modules(model) if s.layers is not None and _is_part(stack, s)]
        choices: dict[int, list[Any]] = {}
        for ref in inside:

            def choice_of(name: str, ref: ModuleRef[Adaptable] = ref) -> Any:
                chosen = choose(ref, name, spec, target_modules, overrides)
                return trains(name, modules_to_save), *chosen

            for layer, names in zip(ref.layers or (), ref.names_by_layer(), strict=True):
                choices.setdefault(layer, []).append(_one_choice(names, choice_of))
        order = sorted(choices)
        pairs = itertools.pairwise(order)
        stack.cut([later for sooner, later in pairs if choices[sooner] != choices[later]])


def _one_choice(names: Sequence[str], choice_of: Callable[[str], Any]) -> Any:
    """Returns the choice for the experts of a layer, which are one array.

    Raises:
        UserError: the choices for them differ.
    """
    choice = choice_of(names[0])
    for name in names[1:]:
        if choice_of(name) != choice:
            raise UserError(
                f"{names[0]} and {name} are one array here, so all experts of a layer are adapted "
                "alike: give targets, overrides and modules to train that match all of them"
            )
    return choice


def _is_part(stack: Stack, ref: ModuleRef) -> bool:
    modules = (module for run in stack.runs for _, module in nnx.iter_modules(run))
    return any(module is ref.module for module in modules)


def with_parameters(model: nnx.Module) -> list[ModuleRef]:
    """Finds every module that directly holds parameters, linear or not."""
    return [
        ref
        for ref in find_modules(model, nnx.Module)
        if any(type(value) is nnx.Param for value in vars(ref.module).values())
    ]
