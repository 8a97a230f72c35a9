"""Changes of a config that make its step smaller, named where a plan does not fit."""

from __future__ import annotations

from typing import NamedTuple

from goat_jax.config.run import RunConfig
from goat_jax.sharding.rules import ShardingRules
from goat_jax.training.task_types import task_type_of


class Remedies(NamedTuple):
    """Options of a run that need less memory per device and are not in use yet.

    Attributes:
        temporaries: those that leave the state and the base as they are.
        all: these and the others, in the order in which they are best tried.
    """

    temporaries: tuple[str, ...]
    all: tuple[str, ...]

    def text(self, arguments_fit: bool = True) -> str:
        """Returns the options as one phrase.

        Args:
            arguments_fit: whether state, base and batch fit by themselves; else only what makes
                them smaller is named.
        """
        found = [each for each in self.all if arguments_fit or each not in self.temporaries]
        return " or ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))


def remedies(config: RunConfig, rules: ShardingRules | None) -> Remedies:
    """Returns the options of a run that would make its step smaller.

    Args:
        config: the run's config, which fits its mesh.
        rules: the sharding rules of that mesh; None for one device.
    """
    train, texts = config.train, task_type_of(config.task).unit == "tokens"
    parts = 1 if rules is None else rules.batch_parts
    remat, quantize, smaller = [], [], []
    if config.model.remat not in ("full", "offload"):
        remat.append("--model.remat full")
    elif config.model.remat == "full":
        remat.append("--model.remat offload")
    # A kernel that is trained in full is not quantized.
    if config.model.quantize == "none" and not config.adapter.spec().combine.replaces:
        quantize.append("--model.quantize nf4")
    if train.batch_size % (2 * parts * train.grad_accum_steps) == 0:
        smaller.append(f"--train.grad-accum-steps {2 * train.grad_accum_steps}")
    elif train.batch_size > parts * train.grad_accum_steps:
        smaller.append(f"--train.batch-size {parts * train.grad_accum_steps}")
    if texts:
        smaller.append(f"--train.max-length {train.max_length // 2}")
    count, sharded = (1, 1) if rules is None else (rules.mesh.size, rules.token_parts)
    devices = f"{2 * count} devices" + (f" (--mesh.sequence {2 * sharded})" if texts else "")
    return Remedies((*remat, *smaller), (*remat, *quantize, *smaller, devices))
