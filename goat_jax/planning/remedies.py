"""Changes of a config that make its step smaller, named where a plan does not fit."""

from __future__ import annotations

from goat_jax.config.run import RunConfig
from goat_jax.sharding.rules import ShardingRules
from goat_jax.training.task_types import task_type_of


def remedies(config: RunConfig, rules: ShardingRules | None) -> str:
    """Returns the options of a run that need less memory per device and are not in use yet.

    Args:
        config: the run's config, which fits its mesh.
        rules: the sharding rules of that mesh; None for one device.
    """
    train, texts = config.train, task_type_of(config.task).unit == "tokens"
    parts = 1 if rules is None else rules.batch_parts
    found = []
    if config.model.remat not in ("full", "offload"):
        found.append("--model.remat full")
    elif config.model.remat == "full":
        found.append("--model.remat offload")
    if config.model.quantize == "none":
        found.append("--model.quantize nf4")
    if train.batch_size // parts % (2 * train.grad_accum_steps) == 0:
        found.append(f"--train.grad-accum-steps {2 * train.grad_accum_steps}")
    elif train.batch_size > parts:
        found.append(f"--train.batch-size {parts}")
    if texts:
        found.append(f"--train.max-length {train.max_length // 2}")
    devices, sharded = (1, 1) if rules is None else (rules.mesh.size, rules.token_parts)
    found.append(f"{2 * devices} devices" + (f" (--mesh.sequence {2 * sharded})" if texts else ""))
    return ", ".join(found[:-1]) + f" or {found[-1]}"
