"""Known models have the number of parameters that their publishers state."""

import jax
import numpy as np
import pytest
from flax import nnx

from goat_jax.errors import UserError
from goat_jax.models.known_decoders import KNOWN_DECODERS
from goat_jax.models.known_encoders import KNOWN_ENCODERS
from goat_jax.models.known_seq2seq import KNOWN_SEQ2SEQ
from goat_jax.models.known_sizes import NAMED, model_config
from goat_jax.models.load import random_model
from goat_jax.models.vision.text_tower import TEXT
from tiers import first_of_each

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
    "llama-3.3-70b": 70_553_706_496,
    "deepseek-r1-distill-llama-8b": 8_030_261_248,
    "deepseek-r1-distill-llama-70b": 70_553_706_496,
    "tinyllama-1.1b-chat-v1.0": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-base-2407": 12_247_782_400,
    "mistral-small-24b-base-2501": 23_572_403_200,
    "ministral-8b-instruct-2410": 8_019_808_256,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "deepseek-r1-distill-qwen-7b": 7_615_616_512,
    "deepseek-r1-distill-qwen-14b": 14_770_033_664,
    "deepseek-r1-distill-qwen-32b": 32_763_876_352,
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
    "qwen3-4b-instruct-2507": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-30b-a3b-instruct-2507": 30_532_122_624,
    "qwen3-coder-30b-a3b-instruct": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "mixtral-8x7b-v0.1": 46_702_792_704,
    "mixtral-8x22b-v0.1": 140_620_634_112,
    "olmoe-1b-7b-0924": 6_919_161_856,
    "olmoe-1b-7b-0125": 6_919_161_856,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
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
    "olmo-2-0325-32b": 32_234_279_936,
    "olmo-3-1025-7b": 7_298_011_136,
    "olmo-3-1125-32b": 32_233_522_176,
    "olmo-3-7b-instruct": 7_298_011_136,
    "granite-3.3-2b-base": 2_533_539_840,
    "granite-3.3-8b-base": 8_170_864_640,
    "c4ai-command-r7b-12-2024": 8_028_033_024,
    "glm-4-9b": 9_399_951_360,
    "glm-4-9b-0414": 9_400_279_040,
    "stablelm-3b-4e1t": 2_795_443_200,
    "stablelm-2-1_6b": 1_644_515_328,
}

_GATED_T5 = {
    "small": 76_961_152,
    "base": 247_577_856,
    "large": 783_150_080,
    "xl": 2_849_757_184,
    "xxl": 11_135_332_352,
}
ENCODER_DECODERS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    **{f"t5-v1_1-{size}": count for size, count in _GATED_T5.items()},
    **{f"flan-t5-{size}": count for size, count in _GATED_T5.items()},
}

# With what is not in our model: classifiers of 1000 classes, and the mask token of DINOv2.
PUBLISHED_IMAGES = {
    "deit-base-distilled-patch16-224": (87_338_192, 2 * 769_000),
    "deit-small-distilled-patch16-224": (22_436_432, 2 * 385_000),
    "deit-tiny-distilled-patch16-224": (5_910_800, 2 * 193_000),
    "beit-base-patch16-224": (86_530_984, 769_000),
    "beit-large-patch16-224": (304_430_568, 1_025_000),
    "dinov2-small": (22_056_576, 384),
    "dinov2-base": (86_580_480, 768),
    "dinov2-large": (304_368_640, 1024),
    "dinov2-with-registers-base": (86_583_552, 0),
    "dinov3-vits16-pretrain-lvd1689m": (21_596_544, 0),
    "dinov3-vitb16-pretrain-lvd1689m": (85_660_416, 0),
    "dinov3-vitl16-pretrain-lvd1689m": (303_129_600, 0),
    "dinov3-vith16plus-pretrain-lvd1689m": (840_592_640, 0),
    "dinov3-vit7b16-pretrain-lvd1689m": (6_716_035_072, 0),
}
PUBLISHED_PAIRS = {
    "siglip-base-patch16-224": 203_155_970,
    "siglip-so400m-patch14-384": 877_960_498,
    "siglip2-base-patch16-224": 375_187_970,
    "siglip2-so400m-patch14-384": 1_136_008_498,
}

# Without a head: as transformers' base models without a pooler have them.
ENCODERS = {
    "bert-base-uncased": 108_891_648,
    "bert-base-cased": 107_719_680,
    "bert-base-multilingual-cased": 177_262_848,
    "distilbert-base-uncased": 66_362_880,
    "distilroberta-base": 81_527_808,
    "bert-large-uncased": 334_092_288,
    "all-minilm-l6-v2": 22_565_376,
    "roberta-base": 124_055_040,
    "roberta-large": 354_310_144,
    "xlm-roberta-base": 277_453_056,
    "xlm-roberta-large": 558_840_832,
    "camembert-base": 110_031_360,
    "electra-small-discriminator": 13_483_008,
    "electra-base-discriminator": 108_891_648,
    "electra-large-discriminator": 334_092_288,
    "mpnet-base": 108_895_872,
    "all-mpnet-base-v2": 108_895_872,
    "albert-base-v2": 11_092_992,
    "albert-large-v2": 16_634_368,
    "albert-xlarge-v2": 54_528_512,
    "albert-xxlarge-v2": 205_814_272,
    "modernbert-base": 149_014_272,
    "modernbert-large": 394_781_696,
    "deberta-v3-xsmall": 70_682_112,
    "deberta-v3-small": 141_304_320,
    "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160,
    "mdeberta-v3-base": 278_218_752,
    "deberta-v2-xlarge": 884_593_152,
    "deberta-v2-xxlarge": 1_564_549_632,
}


def count(build):
    """The number of parameters of a model, without its classifier, which is as wide as a task."""
    shapes = nnx.to_pure_dict(jax.eval_shape(lambda: nnx.state(build())))
    shapes = {key: part for key, part in shapes.items() if not key.startswith("head_")}
    shapes.get("head", {}).pop("classifier", None)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def parameters(name, **options):
    return count(lambda: random_model(model_config(name), key=jax.random.key(0), **options).model)


@pytest.mark.parametrize("name", PUBLISHED | ENCODER_DECODERS)
def test_parameters_of_known_decoders(name):
    assert parameters(name) == (PUBLISHED | ENCODER_DECODERS)[name]


def _kind(name):
    return (model_config(name)["model_type"],)


@pytest.mark.parametrize("name", first_of_each(PUBLISHED_IMAGES, _kind, marks=()))
def test_parameters_of_known_image_encoders(name):
    published, elsewhere = PUBLISHED_IMAGES[name]
    assert parameters(name) + elsewhere == published


@pytest.mark.parametrize("name", first_of_each(PUBLISHED_PAIRS, _kind, marks=()))
def test_parameters_of_known_pairs_of_towers(name):
    text = TEXT["siglip"].config_of(model_config(name))
    texts = count(lambda: TEXT["siglip"].build(text, rngs=nnx.Rngs(0)))
    assert parameters(name, head="zero_shot") + texts == PUBLISHED_PAIRS[name]


@pytest.mark.parametrize("name", first_of_each(ENCODERS, _kind, marks=()))
def test_parameters_of_known_encoders(name):
    assert parameters(name) == ENCODERS[name]


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("Qwen/Qwen3-8B-Base", "qwen3-8b"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo-base-2407"),
        ("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b"),
        ("google/gemma-3-1b-it", "gemma-3-1b-pt"),
        ("roberta-base", "roberta-base"),
    ],
)
def test_base_and_chat_models_have_the_same_sizes(name, same):
    assert model_config(name) == NAMED[same]


def test_a_name_without_its_size_is_not_a_known_one():
    with pytest.raises(UserError, match="whose sizes are known"):
        model_config("roberta")


def test_the_others_are_the_language_models_of_multimodal_ones():
    rest = {name.partition("-pt")[0] for name in set(KNOWN_DECODERS) - set(PUBLISHED)}
    assert rest == {"gemma-3-4b", "gemma-3-12b", "gemma-3-27b"}
    assert set(KNOWN_DECODERS) | set(KNOWN_ENCODERS) <= set(NAMED)
    assert set(KNOWN_ENCODERS) == set(ENCODERS)
    assert set(KNOWN_SEQ2SEQ) == set(ENCODER_DECODERS)
