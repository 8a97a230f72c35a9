"""Attaches adapters to the `Dense` modules of a model and reports what was adapted and why."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.adapter import AdapterInit, init_adapter, segment_index
from goat_jax.adapters.spec import OF_THE_RUN, AdapterSpec
from goat_jax.core.svd import Svd
from goat_jax.errors import UserError, nearest
from goat_jax.injection.sharded_init import Sharder, start_layers, start_on_mesh
from goat_jax.injection.svd_cache import SvdStore, is_known
from goat_jax.injection.targets import (
    ALL_LINEAR,
    EVERYTHING,
    Targets,
    check_all_match,
    check_regex,
    matches,
    trains,
)
from goat_jax.nn.dense import Adapter, Dense, Factor, Head
from goat_jax.nn.named_modules import ModuleRef, find_modules, find_stacks, name_number
from goat_jax.nn.stack import Stack
from goat_jax.typing import Key
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
        own = spec.replace(**self.options)
        for field in OF_THE_RUN:
            if getattr(own, field) != getattr(spec, field):
                names = self.modules if isinstance(self.modules, str) else list(self.modules)
                raise UserError(
                    f"an override of {names!r} changes {field}, which is one for the whole "
                    "run: set it for the adapter, not for some modules"
                )
        return own


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the report: a module (of several layers, if stacked) and how it is trained.

    Attributes:
        name: the module's name pattern.
        layers: the layers that the module holds; None outside a stack.
        shape: the kernel's shape (I, O), without a layer axis.
        trained: number of trained parameters of the module and its adapter.
        what: "adapter", "trained in full" or "frozen".
        reason: the reason why the module has no adapter; else empty.
    """

    name: str
    layers: range | None
    shape: tuple[int, int]
    trained: int
    what: str
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class InjectReport:
    """Summary of an `inject` call.

    Attributes:
        rows: one row per module or run of layers.
        adapter_parameters: number of the adapters' trained parameters.
        head_parameters: number of parameters trained in full.
        total_parameters: number of all parameters of the model, with the adapters' trained ones.
        pretrained_parameters: number of the model's parameters before the call.
    """

    rows: tuple[Row, ...]
    adapter_parameters: int
    head_parameters: int
    total_parameters: int
    pretrained_parameters: int

    @property
    def trained_parameters(self) -> int:
        """Number of parameters that are optimized."""
        return self.adapter_parameters + self.head_parameters

    @property
    def adapter_share(self) -> float:
        """Ratio of adapter parameters to those of the pretrained model, as papers count."""
        return self.adapter_parameters / self.pretrained_parameters


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
) -> InjectReport:
    """Attaches an adapter to every target, in place, and edits its kernel as the method requires.

    Stacked layers are initialized together. Where overrides make layers of a stack differ, the
    stack is split into runs of equal layers.

    Args:
        model: the pretrained model, without adapters.
        spec: the method.
        target_modules: the `Dense` modules that get an adapter, by their Hugging Face names;
            "all-linear" means those of the transformer blocks.
        key: PRNG key; every module derives a key from it by name, whatever else is adapted.
        overrides: specs for some modules; the first that matches a module applies.
        modules_to_save: modules trained in full (the task head), with their submodules; they get
            no adapter. A method that trains the whole model trains all others in full, too.
        gradients: full module name -> gradient (I, O) of the loss with respect to its kernel, for
            methods that start from it.
        sharder: sharding of the arrays on a mesh; None leaves them on one device. With it, the
            initialization of a stack's layers is distributed over all devices.
        svds: cache of the layers' SVDs; None computes them without one.

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
    pretrained = _size(model, nnx.Param)
    # First, so that a wrong target does not leave a half-adapted model.
    check_choices(model, spec, target_modules, overrides, modules_to_save)
    if target_modules == ALL_LINEAR:
        target_modules = _in_blocks(model)
    # Before the modules are listed: each then has one spec for all its layers.
    _cut_stacks(model, spec, target_modules, overrides, modules_to_save)
    rows = []
    for site in find_modules(model):
        name = site.names()[0]
        shape = tuple(site.module.kernel.shape[-2:])
        if trains(name, modules_to_save):
            what, reason = "trained in full", ""
        else:
            chosen, reason = _choose(site, name, spec, target_modules, overrides)
            what = "frozen" if chosen is None else "adapter"
            if chosen is not None:
                attach(site, chosen, key, gradients, sharder, svds)
            elif spec.whole_model:
                what, reason = "trained in full", ""
        rows.append((site, what, reason, shape))
    # After the adapters are attached, since a kernel that has one stays frozen.
    train_in_full(model, EVERYTHING if spec.whole_model else modules_to_save)
    return _report(model, rows, pretrained)


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
    sites = find_modules(model)
    names = [name for site in sites for name in site.names()]
    every = [name for site in _with_parameters(model) for name in site.names()]
    check_all_match(names, "target", target_modules)
    check_all_match(every, "module to train", modules_to_save, trains, "module")
    for override in overrides:
        check_all_match(names, "override", override.modules)
    if target_modules == ALL_LINEAR:
        target_modules = _in_blocks(model)
    reasons = set()
    for site in sites:
        for name in site.names():
            if trains(name, modules_to_save):
                continue
            chosen, reason = _choose(site, name, spec, target_modules, overrides)
            if chosen is not None:
                return
            reasons.add(reason)
    raise UserError(f"no module could be adapted: {'; '.join(sorted(reasons))}")


def _in_blocks(model: nnx.Module) -> list[str]:
    """Names every linear layer of the blocks, as the paper adapts, or of a model without blocks."""
    sites = find_modules(model)
    blocks = [site for site in sites if site.layers is not None] or sites
    return [name for site in blocks for name in site.names()]


def _resolve(name: str, spec: AdapterSpec, overrides: Sequence[Override]) -> AdapterSpec:
    for override in overrides:
        if matches(name, override.modules):
            return override.spec(spec)
    return spec


def _choose(
    site: ModuleRef[Dense],
    name: str,
    spec: AdapterSpec,
    target_modules: Targets,
    overrides: Sequence[Override],
) -> tuple[AdapterSpec | None, str]:
    """Returns a module's spec, or None and the reason why it gets no adapter."""
    if not matches(name, target_modules):
        return None, "not a target"
    own = _resolve(name, spec, overrides)
    smaller = min(site.module.kernel.shape[-2:])
    if own.total_rank > smaller:
        return None, f"total rank {own.total_rank} is above its smaller side {smaller}"
    return own, ""


def _cut_stacks(
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
        for site in inside:
            for layer, name in zip(site.layers or (), site.names(), strict=True):
                chosen = _choose(site, name, spec, target_modules, overrides)
                choices.setdefault(layer, []).append((trains(name, modules_to_save), *chosen))
        order = sorted(choices)
        pairs = itertools.pairwise(order)
        stack.cut([later for sooner, later in pairs if choices[sooner] != choices[later]])


def _is_part(stack: Stack, site: ModuleRef) -> bool:
    modules = (module for run in stack.runs for _, module in nnx.iter_modules(run))
    return any(module is site.module for module in modules)


def attach(
    site: ModuleRef[Dense],
    spec: AdapterSpec,
    key: Key,
    gradients: Mapping[str, jax.Array] | None = None,
    sharder: Sharder | None = None,
    svds: SvdStore | None = None,
) -> None:
    """Initializes an adapter from a module's kernel and attaches it there."""
    dense = site.module
    if dense.adapter is not None:
        raise UserError(f"{site.names()[0]} has an adapter already: start from a new model")
    start = start_adapter(dense.kernel[...], spec, key, site, gradients, sharder, svds)
    dense.kernel.set_value(start.kernel)
    salt = name_number(site.pattern)
    dense.adapter = Adapter(start.factors, start.scale, spec, salt, start.constants)


def start_adapter(
    kernel: jax.Array,
    spec: AdapterSpec,
    key: Key,
    site: ModuleRef,
    gradients: Mapping[str, jax.Array] | None = None,
    sharder: Sharder | None = None,
    svds: SvdStore | None = None,
) -> AdapterInit:
    """Calls `init_adapter` on a module; each layer of a stack has a key derived from its name."""
    numbers = jnp.array([name_number(name) for name in site.names()], jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    known = _gradients_of(site, gradients)
    segments = None if svds is None else _stored_segments(kernel, spec, keys, site, svds)
    if sharder is not None:
        return start_on_mesh(kernel, spec, keys, known, segments, site, sharder)
    if site.layers is None:
        first = [
            None if each is None else jax.tree.map(lambda a: a[0], each)
            for each in (known, segments)
        ]
        return _start(kernel, spec, keys[0], *first)
    return _start_stacked(kernel, spec, keys, known, segments)


def _stored_segments(
    kernel: jax.Array, spec: AdapterSpec, keys: Key, site: ModuleRef, svds: SvdStore
) -> Svd | None:
    """Returns the stacked SVD segments of a module's layers from a store.

    None for methods that use no segments, and where the kernel is abstract (shapes alone).
    """
    smaller = min(kernel.shape[-2:])
    if segment_index(smaller, spec, keys[0]) is None or not is_known(kernel):
        return None
    indices = np.asarray(jax.vmap(lambda key: segment_index(smaller, spec, key))(keys))
    found = []
    for svd, index in zip(
        svds.of_layers(kernel, list(indices.reshape(len(indices), -1))), indices, strict=True
    ):
        u = np.moveaxis(np.asarray(svd.u).reshape(-1, *index.shape), 0, 1)
        found.append(Svd(u, svd.s.reshape(index.shape), svd.vt.reshape(*index.shape, -1)))
    return jax.tree.map(lambda *layers: np.stack(layers), *found)


def _gradients_of(site: ModuleRef, gradients: Mapping[str, jax.Array] | None) -> jax.Array | None:
    """Returns the gradients (L, I, O) of a module's layers; None if none are given."""
    if gradients is None:
        return None
    for name in site.names():
        if name not in gradients:
            raise UserError(f"no gradient of {name!r} is given{nearest(name, gradients)}")
    return jnp.stack([jnp.asarray(gradients[name]) for name in site.names()])


@partial(jax.jit, static_argnums=1)
def _start(
    kernel: jax.Array, spec: AdapterSpec, key: Key, gradient: jax.Array | None, segments: Svd | None
) -> AdapterInit:
    return init_adapter(kernel, spec, key, gradient, segments)


@partial(jax.jit, static_argnums=1)
def _start_stacked(
    kernels: jax.Array,
    spec: AdapterSpec,
    keys: Key,
    gradients: jax.Array | None,
    segments: Svd | None,
) -> AdapterInit:
    return start_layers(kernels, keys, gradients, segments, spec)


def train_in_full(model: nnx.Module, modules: Targets) -> None:
    """Turns the parameters of these modules into `Head`: trained in float32, not frozen.

    A kernel with an adapter stays frozen, also if the adapter changed it. A module that sets the
    hidden states' dtype (`kept_dtype`) keeps computing in the dtype it was stored in.
    """
    for site in _with_parameters(model):
        if not trains(site.names()[0], modules):
            continue
        module: Any = site.module
        under_adapter = "kernel" if getattr(module, "adapter", None) is not None else None
        for name, value in vars(module).items():
            if type(value) is nnx.Param and name != under_adapter:
                if hasattr(module, "kept_dtype"):
                    module.kept_dtype = module.dtype
                setattr(module, name, Head(value[...].astype(jnp.float32)))


def _with_parameters(model: nnx.Module) -> list[ModuleRef]:
    """Finds every module that directly holds parameters, linear or not."""
    return [
        site
        for site in find_modules(model, nnx.Module)
        if any(type(value) is nnx.Param for value in vars(site.module).values())
    ]


def _size(model: nnx.Module, *kinds: nnx.filterlib.Filter) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, *kinds)))


def _report(
    model: nnx.Module, chosen: list[tuple[ModuleRef[Dense], str, str, tuple]], pretrained: int
) -> InjectReport:
    rows = []
    for site, what, reason, shape in chosen:
        rows.append(
            Row(
                name=site.pattern,
                layers=site.layers,
                shape=shape,
                trained=_size(site.module, (Factor, Head)) if what != "frozen" else 0,
                what=what,
                reason=reason,
            )
        )
    return InjectReport(
        tuple(rows), _size(model, Factor), _size(model, Head), _size(model, nnx.Param), pretrained
    )
