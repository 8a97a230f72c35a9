"""Known models have the number of parameters that their publishers state."""

import jax
import numpy as np
import pytest
from flax import nnx

from goat_jax.models.known_decoders import KNOWN_DECODERS
from goat_jax.models.known_sizes import NAMED, model_config
from goat_jax.models.load import random_model

# From the model cards and the headers of the published weights; of the multimodal models the
# language model alone, tied tables once.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-base-2407": 12_247_782_400,
    "mistral-small-24b-base-2501": 23_572_403_200,
    "ministral-8b-instruct-2410": 8_019_808_256,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b-pt": 999_885_952,
    "phi-3-mini-4k-instruct": 3_821_079_552,
    "phi-3-medium-4k-instruct": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "olmo-2-0425-1b": 1_484_916_736,
    "olmo-2-1124-7b": 7_298_617_344,
    "olmo-2-1124-13b": 13_716_198_400,
    "granite-3.3-2b-base": 2_533_539_840,
    "granite-3.3-8b-base": 8_170_864_640,
    "c4ai-command-r7b-12-2024": 8_028_033_024,
    "glm-4-9b": 9_399_951_360,
    "glm-4-9b-0414": 9_400_279_040,
    "stablelm-3b-4e1t": 2_795_443_200,
    "stablelm-2-1_6b": 1_644_515_328,
}


def parameters(name):
    shapes = jax.eval_shape(
        lambda: nnx.state(random_model(model_config(name), key=jax.random.key(0)).model)
    )
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_known_decoders(name):
    assert parameters(name) == PUBLISHED[name]


def test_the_others_are_the_language_models_of_multimodal_ones():
    rest = {name.partition("-pt")[0] for name in set(KNOWN_DECODERS) - set(PUBLISHED)}
    assert rest == {"gemma-3-4b", "gemma-3-12b", "gemma-3-27b"}
    assert set(KNOWN_DECODERS) <= set(NAMED)
