"""Extracts the adapter of a single task from one that weights its experts by task."""

import jax

from goat_jax.adapters.parts.routers import NoRouter, TaskGate
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.typing import Array, Factors


def for_task(
    factors: Factors, scale: Array, spec: AdapterSpec, task: int
) -> tuple[Factors, Array, AdapterSpec]:
    """Returns factors, scale and spec of an adapter without router, equivalent for one task.

    It can be merged, because the experts' weights are now part of the scale.

    Args:
        factors: the adapter's trained arrays.
        scale: the experts' scales (E,).
        spec: a spec whose router is `TaskGate`.
        task: the number of the task, counted from 0.

    Raises:
        UserError: the router is not `TaskGate`, or there is no task of this number.

    >>> import jax
    >>> from goat_jax.adapters.adapter import init_adapter, merge_adapter
    >>> from goat_jax.adapters.methods import method_spec
    >>> spec = method_spec("moelora")
    >>> start = init_adapter(jax.numpy.ones((16, 16)), spec, jax.random.key(0))
    >>> merge_adapter(start.kernel, *for_task(start.factors, start.scale, spec, 3)).shape
    (16, 16)
    """
    if not isinstance(spec.router, TaskGate):
        raise UserError(
            f"{type(spec.router).__name__} does not depend on the task: use the adapter as it is"
        )
    tasks = factors["task_embedding"].shape[0]
    if not 0 <= task < tasks:
        raise UserError(f"task {task} is not in 0..{tasks - 1}")
    weights = spec.router.weights(factors, jax.numpy.asarray(task))
    return factors, scale * weights, spec.replace(router=NoRouter())
