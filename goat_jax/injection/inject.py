"""`inject`: attaches adapters to the modules of a model that take them, and reports on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.injection.attach import attach
from goat_jax.injection.report import InjectReport, count_parameters, make_report
from goat_jax.injection.selection import (
    Override,
    check_choices,
    choose,
    cut_stacks,
    in_blocks,
    with_head,
    with_parameters,
)
from goat_jax.injection.sharded_init import Sharder
from goat_jax.injection.svd_cache import SvdStore
from goat_jax.injection.targets import (
    ALL_LINEAR,
    EVERYTHING,
    Targets,
    trains,
)
from goat_jax.nn.dense import Head
from goat_jax.nn.named_modules import find_modules
from goat_jax.typing import Key


def inject(
    model: nnx.Module,
    spec: AdapterSpec,
    target_modules: Targets = ALL_LINEAR,
    *,
    key: Key,
    overrides: Sequence[Override] = (),
    modules_to_save: Targets = (),
    gradients: Mapping[str, jax.Array] | None = None,
    sharder: Sharder | None = None,
    svds: SvdStore | None = None,
    factors: bool = True,
) -> InjectReport:
    """Attaches an adapter to every target, in place, and edits its kernel as the method requires.

    Stacked layers are initialized together. Where overrides make layers of a stack differ, the
    stack is split into runs of equal layers.

    Args:
        model: the pretrained model, without adapters.
        spec: the method.
        target_modules: the modules that get an adapter, by their Hugging Face names: linear layers,
            the table of the tokens' vectors, the vocabulary's output. "all-linear" means those of
            the transformer blocks.
        key: PRNG key; every module derives a key from it by name, whatever else is adapted.
        overrides: specs for some modules; the first that matches a module applies.
        modules_to_save: modules trained in full, with their submodules; they get no adapter.
            "task-head" means those of the model's head. A method that trains the whole model
            trains all others in full, too.
        gradients: full module name -> gradient (I, O) of the loss with respect to its kernel, for
            methods that start from it.
        sharder: sharding of the arrays on a mesh; None leaves them on one device. With it, the
            initialization of a stack's layers is distributed over all devices.
        svds: cache of the layers' SVDs; None computes them without one.
        factors: whether the adapters' trained arrays get their initial values. Without them they
            are zeros for a checkpoint to replace, and much less is compiled.

    Returns:
        The report on every module.

    Raises:
        UserError: a target or override that matches nothing, nothing that could be adapted, or a
            module that has an adapter already.

    >>> from goat_jax.adapters.methods import method_spec
    >>> from goat_jax.models.encoder.model import Encoder, tiny_config
    >>> model = Encoder(tiny_config(), rngs=nnx.Rngs(0))
    >>> spec = method_spec("goat", total_rank=8)
    >>> head = ["classifier"]
    >>> report = inject(model, spec, ["query"], key=jax.random.key(0), modules_to_save=head)
    >>> report.adapter_parameters == 3 * (2 * 8 * 32 + 8 * 32), report.head_parameters
    (True, 66)
    """
    pretrained = count_parameters(model, nnx.Param)
    # First, so that a wrong target does not leave a half-adapted model.
    check_choices(model, spec, target_modules, overrides, modules_to_save)
    modules_to_save = with_head(model, modules_to_save)
    if target_modules == ALL_LINEAR:
        target_modules = in_blocks(model)
    # Before the modules are listed: each then has one spec for all its layers.
    cut_stacks(model, spec, target_modules, overrides, modules_to_save)
    rows = []
    for ref in find_modules(model):
        name = ref.names()[0]
        shape = tuple(ref.module.kernel.shape[-2:])
        if trains(name, modules_to_save):
            what, reason = "trained in full", ""
        else:
            chosen, reason = choose(ref, name, spec, target_modules, overrides)
            what = "frozen" if chosen is None else "adapter"
            if chosen is not None:
                attach(ref, chosen, key, gradients, sharder, svds, factors)
            elif spec.whole_model:
                what, reason = "trained in full", ""
        rows.append((ref, what, reason, shape))
    # After the adapters are attached, since a kernel that has one stays frozen.
    train_in_full(model, EVERYTHING if spec.whole_model else modules_to_save)
    return make_report(model, rows, pretrained)


def train_in_full(model: nnx.Module, modules: Targets) -> None:
    """Turns the parameters of these modules into `Head`: trained in float32, not frozen.

    A kernel with an adapter stays frozen, also if the adapter changed it. A module that sets the
    hidden states' dtype (`kept_dtype`) keeps computing in the dtype it was stored in.
    """
    for ref in with_parameters(model):
        if not trains(ref.names()[0], modules):
            continue
        module: Any = ref.module
        adapted = getattr(module, "adapter", None) is not None
        under_adapter = module.matrix if adapted else None
        for name, value in vars(module).items():
            if type(value) is nnx.Param and name != under_adapter:
                if hasattr(module, "kept_dtype"):
                    module.kept_dtype = module.dtype
                setattr(module, name, Head(value[...].astype(jnp.float32)))
