"""The parts of the suite, the most useful first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from goat_jax.bench.accelerator.attention import attention_rows
from goat_jax.bench.accelerator.generation import generation_rows
from goat_jax.bench.accelerator.rows import Row, Settings
from goat_jax.bench.accelerator.training import (
    Batch,
    Configure,
    decoder_config,
    encoder_config,
    training_rows,
    vision_config,
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the suite.

    Attributes:
        share: the part's share of the time, relative to the other parts'.
        rows: measures, settings -> the rows of the table.
    """

    share: float
    rows: Callable[[Settings], Iterator[Row]]


def _training(
    name: str, configure: Configure, *batches: Batch, tiny: Batch
) -> Callable[[Settings], Iterator[Row]]:
    return lambda settings: training_rows(
        name, settings, configure, (tiny,) if settings.tiny else batches
    )


SHORT, LONG, ENCODER, VISION = "train", "train, long", "encoder", "vision"

PARTS: Mapping[str, Part] = MappingProxyType(
    {
        SHORT: Part(
            180,
            _training(
                SHORT,
                decoder_config,
                Batch(2, 4096),
                Batch(1, 4096),
                Batch(1, 4096, "full"),
                tiny=Batch(2, 64),
            ),
        ),
        "attention": Part(90, attention_rows),
        LONG: Part(
            150,
            _training(LONG, decoder_config, Batch(1, 32768, "full"), tiny=Batch(1, 256, "full")),
        ),
        ENCODER: Part(
            60,
            _training(ENCODER, encoder_config, Batch(256, 128), Batch(64, 128), tiny=Batch(4, 16)),
        ),
        VISION: Part(
            60, _training(VISION, vision_config, Batch(128, 128), Batch(32, 128), tiny=Batch(2, 8))
        ),
        "generation": Part(60, generation_rows),
    }
)
"""Name -> a part, in the order in which they are run."""
