"""One task of an adapter that goes by tasks, as an adapter of its own."""

import jax

from goat_jax.adapters.parts.routers import NoRouter, TaskGate
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.typing import Array, Factors


def for_task(
    factors: Factors, scale: Array, spec: AdapterSpec, task: int
) -> tuple[Factors, Array, AdapterSpec]:
    """The factors, scale and spec of an adapter without router that does what this one does there.

    It can be merged: the weights of the experts have become part of the scale.

    Raises:
        UserError: an adapter whose router does not go by tasks, or a task it does not have.

    >>> import jax
    >>> from goat_jax.adapters.adapter import init_adapter, merge_adapter
    >>> from goat_jax.adapters.methods import method_spec
    >>> spec = method_spec("moelora")
    >>> start = init_adapter(jax.numpy.ones((16, 16)), spec, jax.random.key(0))
    >>> merge_adapter(start.kernel, *for_task(start.factors, start.scale, spec, 3)).shape
    (16, 16)
    """
    if not isinstance(spec.router, TaskGate):
        raise UserError(f"{type(spec.router).__name__} does not go by tasks: use the adapter as is")
    tasks = factors["task_embedding"].shape[0]
    if not 0 <= task < tasks:
        raise UserError(f"task {task} is not in 0..{tasks - 1}")
    weights = spec.router.weights(factors, jax.numpy.asarray(task))
    return factors, scale * weights, spec.replace(router=NoRouter())
