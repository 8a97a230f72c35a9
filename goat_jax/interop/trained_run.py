"""A finished run with all that its export needs: adapters, scores, experts' constant weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.task_gate import for_task
from goat_jax.config.run import DTYPES, RunConfig
from goat_jax.data.tasks.registry import Task
from goat_jax.errors import UserError
from goat_jax.interop.hf_config import HfForm, form_of
from goat_jax.interop.low_rank import LowRank, low_rank
from goat_jax.interop.modules import AdaptedModule, read_adapted, read_kernels, trained_tensors
from goat_jax.interop.router_weights import ConstantGates, constant_gates
from goat_jax.models.load import load_model
from goat_jax.models.registry import Architecture, architecture_of
from goat_jax.nn.dense import merge_model
from goat_jax.nn.model import Model
from goat_jax.pretrained.resolve import find_model, open_checkpoint
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.checkpoints.restore import ONE_DEVICE, Reopened, restore_run
from goat_jax.training.checks import model_options
from goat_jax.training.data import evaluation_batches, load_rows
from goat_jax.training.evaluate import evaluate
from goat_jax.training.lorahub import few_rows
from goat_jax.training.task_types import task_type_of
from goat_jax.typing import Batch, PyTree

Gates = Mapping[str, np.ndarray]


class Trained:
    """A finished run at one of its checkpoints.

    Args:
        folder: the run's folder.
        step: the checkpoint's step; None: the best checkpoint.
        mesh: the mesh that the model is placed on.
        known: the result of `load_run`, if run.json has been read already.
        factors: whether `start` is needed: the factors' initial values are then made.

    Attributes:
        folder: the run's folder.
        opened: the reopened run.
        config: the run's config.
        setup: the run's training setup.
        path: the folder or file of the pretrained model.
        trainable: the model's trained pytree.
        base: the model's frozen pytree.
        model: the trained model with its adapters.
    """

    def __init__(
        self,
        folder: Path,
        step: int | None,
        mesh: MeshConfig = ONE_DEVICE,
        known: tuple[RunConfig, dict[str, Any]] | None = None,
        factors: bool = False,
    ):
        self.folder, self._has_start = folder, factors
        self.opened: Reopened = restore_run(folder, step, mesh, known, factors)
        self.config, self.setup = self.opened.config, self.opened.setup
        self.path = find_model(self.config.model.path)
        self.trainable: dict[str, PyTree] = self.opened.state.trainable
        self.base: PyTree = self.opened.state.frozen(self.setup.base)
        self.model = self._model(self.trainable, self.base)

    def _model(self, trainable: dict[str, PyTree], base: PyTree) -> Model:
        return merge_model(self.setup.graph, trainable, base)

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The architecture of the pretrained model."""
        return architecture_of(open_checkpoint(self.path)[0], self.path)

    @functools.cached_property
    def form(self) -> HfForm:
        """Form of the model in transformers.

        Raises:
            UserError: transformers has no class of it.
        """
        form, family = form_of(self.setup.kind, self.model.config), self.architecture.family
        if family.class_with(form.ending) is None:
            raise UserError(
                f"transformers has no {family.class_name}{form.ending}: use --to goat, or another "
                "base"
            )
        return form

    @functools.cached_property
    def now(self) -> dict[str, AdaptedModule]:
        """Adapted modules after training, by name."""
        return dict(read_adapted(self.model))

    @functools.cached_property
    def start(self) -> dict[str, AdaptedModule]:
        """Adapted modules before training, by name; needs `factors`."""
        assert self._has_start
        return dict(read_adapted(self._model(self.setup.state.trainable, self.setup.base)))

    @functools.cached_property
    def kernels(self) -> dict[str, np.ndarray]:
        """Pretrained kernels of modules whose frozen kernel depends on more than the factors."""
        asking = [n for n, each in self.now.items() if each.spec.kernel_edit.looks_at_kernel]
        if not asking:
            return {}
        dtype = DTYPES[self.config.model.dtype]
        key, options = jax.random.key(0), model_options(self.config)
        return read_kernels(load_model(self.path, key=key, dtype=dtype, **options).model, asking)

    def low_rank(self, gates: Gates | None) -> dict[str, LowRank]:
        """Rewrites every module as plain LoRA on the pretrained kernel.

        Args:
            gates: module -> (E,) weights that replace a router's; None for adapters without one.

        Raises:
            UserError: a module's change cannot be written as LoRA.
        """
        return {
            name: low_rank(
                module,
                self.start[name],
                self.kernels.get(name),
                None if gates is None else gates[name],
            )
            for name, module in self.now.items()
        }

    @property
    def head(self) -> dict[str, np.ndarray]:
        """PyTorch's tensors of the parameters that were trained in full or newly initialized."""
        return trained_tensors(self.model, self.setup.fresh)

    @functools.cached_property
    def scores(self) -> dict[str, float]:
        """Scores of the run's checkpoint on its evaluation rows."""
        setup = self.setup
        return evaluate(
            setup.eval_step, self.trainable, self.base, self.rows, self.task, put=setup.put_whole
        ).scores

    @property
    def task(self) -> Task:
        return self.config.task

    @functools.cached_property
    def rows(self) -> Sequence[Batch]:
        return evaluation_batches(self.config, load_rows(self.config, "evaluation")[0])

    def task_gates(self, task: int | None) -> Gates | None:
        """Returns the experts' weights (E,) of each module for one task; None if `task` is None."""
        if task is None:
            return None
        gates = {}
        for name, module in self.now.items():
            ones = jnp.ones(module.scale.shape)
            arrays = {key: jnp.asarray(value) for key, value in module.factors.items()}
            gates[name] = np.asarray(for_task(arrays, ones, module.spec, task)[1])
        return gates

    def constant_gates(self, rows: int) -> ConstantGates:
        """Returns constant weights (E,) of each module's experts, from the first training rows.

        Args:
            rows: the number of training rows to measure on; an incomplete batch is left out.
        """
        return constant_gates(
            self.setup.graph,
            self.trainable,
            self.base,
            few_rows(self.config, rows),
            task_type_of(self.task).loss_fn(self.task),
            self.model,
        )
