"""Every key of config.json that transformers reads is read here, refused, or without effect."""

import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import jax
import pytest
import transformers

from goat_jax.errors import UserError
from goat_jax.models.decoder.families import FAMILIES as DECODERS
from goat_jax.models.encoder.families import FAMILIES as ENCODERS
from goat_jax.models.load import random_model
from goat_jax.models.registry import ARCHITECTURES
from goat_jax.models.vision.families import CLIP_TEXT_CONFIG, SIGLIP_TEXT_CONFIG
from goat_jax.pretrained.safetensors import read_json
from goat_jax.pretrained.text_part import TEXT_PARTS
from kinds import present

BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**BLOCKS, "vocab_size": 20, "intermediate_size": 16}
KEYS = {kind: architecture.family.config_keys for kind, architecture in ARCHITECTURES.items()}
KEYS["clip_text_model"] = CLIP_TEXT_CONFIG
KEYS["siglip_text_model"] = SIGLIP_TEXT_CONFIG
SMALL = {
    **{kind: TEXT | {"num_key_value_heads": 2} for kind in DECODERS},
    **{kind: TEXT for kind in ENCODERS},
    "distilbert": {"vocab_size": 20, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 16},
    "clip": {"vision_config": {**BLOCKS, "intermediate_size": 16}, "text_config": TEXT},
    "clip_vision_model": {**BLOCKS, "intermediate_size": 16},
    "vit": {**BLOCKS, "intermediate_size": 16},
    "t5": {"vocab_size": 20, "d_model": 32, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 4},
    "deit": {**BLOCKS, "intermediate_size": 16},
    "dinov2": BLOCKS,
    "dinov2_with_registers": BLOCKS,
    "dinov3_vit": {**BLOCKS, "intermediate_size": 16},
    "beit": {**BLOCKS, "intermediate_size": 16},
    "siglip": {"vision_config": {**BLOCKS, "intermediate_size": 16}, "text_config": TEXT},
    "siglip_vision_model": {**BLOCKS, "intermediate_size": 16},
}


def config_class(model_type):
    return type(transformers.AutoConfig.for_model(model_type))


def keys_of_transformers(model_type):
    """Returns the keys that its config class declares and those that a saved config holds."""
    cls = config_class(model_type)
    own = [base for base in cls.__mro__ if ".models." in base.__module__]
    declared = {name for base in own for name in getattr(base, "__annotations__", {})}
    methods = {name for name in dir(cls) if callable(getattr(cls, name))}
    found = (declared | set(cls().to_dict()) | set(cls.attribute_map)) - methods
    return {name for name in found if not name.startswith("_")}  # what a property keeps


def keys_in_code(module):
    """Returns the keys that the code beside a config class reads of it."""
    spec = importlib.util.find_spec(module.replace("configuration_", "modeling_"))
    code = Path(present(present(spec).origin)).read_text(encoding="utf-8")
    read = set(re.findall(r"config\.([a-z]\w+)", code))
    read |= set(re.findall(r'getattr\((?:self\.)?config, "(\w+)"', code))
    return read - set(dir(transformers.PreTrainedConfig)) - {"get"}


def fields_of_the_base():
    """Keys that every config has; methods and properties are none."""
    return set(transformers.PreTrainedConfig().to_dict())


@pytest.mark.parametrize("model_type", KEYS)
def test_no_key_of_transformers_is_unknown(model_type):
    unknown = (keys_of_transformers(model_type) | fields_of_the_base()) - KEYS[model_type].known()
    assert not unknown, f"decide in the record of the family what becomes of {unknown}"


@pytest.mark.parametrize("module", sorted({config_class(kind).__module__ for kind in KEYS}))
def test_no_key_that_the_code_of_transformers_reads_is_unknown(module):
    here = [kind for kind in KEYS if config_class(kind).__module__ == module]
    known = {key for kind in here for key in KEYS[kind].known()}
    # Keys beside the text part of a multimodal config, of which the text part alone is read.
    whole = [transformers.AutoConfig.for_model(kind) for kind in TEXT_PARTS]
    known |= {key for config in whole for key in {*config.to_dict(), *config.attribute_map}}
    unknown = keys_in_code(module) - known - {"head_dim"}  # compared with the usual one everywhere
    assert not unknown, f"decide in the record of the family what becomes of {unknown}"


# Read by transformers for every model with rotary positions, whatever its config class declares.
OLDER = {"rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"}


@pytest.mark.parametrize("model_type", KEYS)
def test_no_key_is_read_here_alone(model_type):
    """A key that changes the network here changes it in transformers, too."""
    module = config_class(model_type).__module__
    code = Path(present(present(importlib.util.find_spec(module)).origin)).read_text("utf-8")
    known = keys_of_transformers(model_type) | fields_of_the_base() | keys_in_code(module) | OLDER
    known |= {"num_labels", "quantization_config"}
    alone = {key for key in set(KEYS[model_type].read) - known if f'"{key}"' not in code}
    assert not alone, f"transformers does not read {alone} for this family: leave it out"


@pytest.mark.parametrize("model_type", KEYS)
def test_a_key_is_in_one_list(model_type):
    keys = KEYS[model_type]
    lists = [set(keys.read), set(keys.fixed), set(keys.without_effect)]
    lists += [set(keys.parts), set(keys.aliases)]
    assert sum(map(len, lists)) == len(keys.known())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_configs_as_transformers_saves_them_are_accepted(model_type, tmp_path):
    config_class(model_type)().save_pretrained(tmp_path)
    hf = read_json(tmp_path / "config.json", "a checkpoint")
    ARCHITECTURES[model_type].config_of(hf)


@pytest.mark.parametrize("model_type", DECODERS)
def test_sizes_that_a_config_leaves_out_are_those_of_transformers(model_type):
    sizes: dict[str, Any] = {**TEXT, "hidden_size": 512, "num_attention_heads": 32}
    theirs = config_class(model_type)(**sizes)
    ours = ARCHITECTURES[model_type].config_of({"model_type": model_type, **sizes})
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_size == (getattr(theirs, "head_dim", None) or 512 // 32)
    assert ours.context == theirs.max_position_embeddings
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    named = ARCHITECTURES[model_type].keys
    assert ours.norm_eps == getattr(theirs, named["norm_eps"])
    assert ours.activation == getattr(theirs, named["activation"])
    thetas = {rope.theta for rope in ours.ropes if rope is not None}
    stated = theirs.rope_parameters
    nested = [each for each in stated.values() if isinstance(each, dict)] or [stated]
    assert thetas <= {each["rope_theta"] for each in nested}
    usual = [window for window in ours.windows if window is not None]
    assert set(usual) <= {getattr(theirs, "sliding_window", None)}


@pytest.mark.parametrize("model_type", DECODERS)
def test_a_null_number_of_key_heads_is_that_of_the_heads(model_type):
    hf = {"model_type": model_type, **TEXT, "num_key_value_heads": None}
    assert ARCHITECTURES[model_type].config_of(hf).num_kv_heads == TEXT["num_attention_heads"]


FIXED = [(kind, key) for kind in ARCHITECTURES for key in KEYS[kind].fixed]


@pytest.mark.parametrize(("model_type", "key"), FIXED)
def test_what_is_computed_at_one_value_is_refused_at_others(model_type, key):
    hf = {"model_type": model_type, **SMALL[model_type]}
    architecture = ARCHITECTURES[model_type]
    usual = KEYS[model_type].fixed[key][0]
    assert architecture.config_of({**hf, key: usual}) == architecture.config_of(hf)
    other = (not usual) if isinstance(usual, bool) else {"0": [1]}
    with pytest.raises(UserError, match=f"{key} is .*, and only {usual!r} is computed here"):
        architecture.config_of({**hf, key: other})


WRONG = [
    ("llama", {"attention_bias": "false"}, "attention_bias is 'false': it must be true or false"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1: it must be true or false"),
    ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps '1e-5' is not valid"),
    ("llama", {"eos_token_id": ["</s>"]}, "eos_token_id '</s>' is not valid"),
    ("llama", {"rope_theta": 0}, "rope_theta 0 is not valid: give a number above 0"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor '2' is not valid"),
    ("llama", {"rope_scaling": [1]}, "rope_scaling is .1.: it must be an object"),
    (
        "llama",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "only one scaling for all layers",
    ),
    ("llama", {"rope_parameters": {"rope_type": "mrope"}}, "'mrope' is not supported"),
    ("phi3", {"rope_scaling": {"type": "su", "long_factor": [1]}}, "has no 'short_factor'"),
    (
        "phi3",
        {"rope_scaling": {"type": "su", "long_factor": [1], "short_factor": "1"}},
        "short_factor is '1': it must be a list of numbers",
    ),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping 0 is not valid"),
    ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar -1 is not valid"),
    ("glm4", {"partial_rotary_factor": 1.5}, "must be above 0 and at most 1"),
    ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers has 1 entries for 2 layers"),
    ("smollm3", {"no_rope_layers": [1, 2]}, "must be a list of 0 and 1"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm is True"),
    ("cohere2", {"layer_norm_eps": -1}, "layer_norm_eps -1 is not valid"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ("llama", {"hidden_act": ["silu"]}, "hidden_act .* is not known"),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers True is not valid"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "a.B"}}, "never run"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is .*bits"),
    ("mistral", {"sliding_window": 0}, "sliding_window 0 is not valid"),
    ("qwen2", {"layer_types": ["full_attention", "chunked"]}, "must be a list of"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "'sliding_attention', but there is no"),
    ("gemma2", {"layer_types": ["sliding_attention"] * 2, "sliding_window": None}, "is no window"),
    ("qwen3", {"head_dim": 0}, "head_dim 0 is not valid"),
    ("qwen3", {"attention_bias": 1}, "attention_bias is 1: it must be true or false"),
    ("bert", {"layer_norm_eps": -1}, "layer_norm_eps -1 is not valid"),
    ("bert", {"type_vocab_size": 0}, "type_vocab_size 0 is not valid"),
    ("bert", {"hidden_dropout_prob": 1}, "hidden_dropout_prob 1 is not valid"),
    ("bert", {"id2label": ["a"]}, "id2label is ..a..: it must be an object"),
    ("roberta", {"pad_token_id": "1"}, "pad_token_id '1' is not valid"),
    ("electra", {"embedding_size": 0}, "embedding_size 0 is not valid"),
    ("mpnet", {"relative_attention_num_buckets": 8}, "relative_attention_num_buckets 8 is not"),
    ("distilbert", {"hidden_size": 48}, "hidden_size is 48 and dim is 32, which are two names"),
    ("vit", {"qkv_bias": "no"}, "qkv_bias is 'no'"),
    ("vit", {"head_dim": 16}, "head_dim is 16"),
    ("dinov2", {"mlp_ratio": 0}, "mlp_ratio 0 is not valid"),
    ("clip", {"vision_config": 3}, "vision_config is 3: it must be an object"),
    ("clip", {"vision_config": {"layer_norm_eps": "x"}}, "layer_norm_eps 'x' is not valid"),
]


@pytest.mark.parametrize(("model_type", "change", "message"), WRONG)
def test_values_that_make_no_sense(model_type, change, message):
    hf = {"model_type": model_type, **SMALL[model_type], **change}
    with pytest.raises(UserError, match=message) as error:
        random_model(hf, key=jax.random.key(0))
    assert "\n" not in str(error.value)


def test_keys_that_transformers_does_not_read_are_ignored():
    hf = {"model_type": "llama", **SMALL["llama"]}
    architecture = ARCHITECTURES["llama"]
    assert architecture.config_of({**hf, "my_note": {"a": 1}}) == architecture.config_of(hf)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite(number, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL["bert"])[:-1] + f', "layer_norm_eps": {number}}}')
    with pytest.raises(UserError, match=f"config.json holds the number {number}: give a finite"):
        read_json(path, "a checkpoint")


WRONG = ("8", "word", 2.5, True, None, [1], {"a": 1}, {"a": None}, -1, 0, 10**30, "", [], 1e308)


@pytest.mark.parametrize("model_type", SMALL)
def test_a_wrong_value_of_any_key_is_one_line_or_a_config(model_type):
    hf = {"model_type": model_type, **SMALL[model_type]}
    parts = {part: hf[part] for part in KEYS[model_type].parts if part in hf}
    places = [((), key) for key in {*KEYS[model_type].known(), *hf} - {"model_type"}]
    places += [((part,), key) for part in parts for key in parts[part]]
    refused = 0
    for (path, key), value in itertools.product(places, WRONG):
        changed = json.loads(json.dumps(hf))
        inner = changed[path[0]] if path else changed
        inner[key] = value
        try:
            ARCHITECTURES[model_type].config_of(changed)
        except UserError as error:
            assert "\n" not in str(error)
            assert value is None or key in str(error)  # without a size, others may not fit
            refused += 1
    assert refused > len(places)
