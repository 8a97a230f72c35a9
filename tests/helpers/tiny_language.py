"""A tiny language model in Hugging Face form, with a word-level tokenizer."""

from flax import nnx

from goat_jax.models.decoder.model import Decoder, tiny_decoder_config
from hugging_face import write_weights

COLOURS = {"grass": "green", "sky": "blue", "blood": "red", "snow": "white", "coal": "black"}
WORDS = ["[PAD]", "[EOS]", "[UNK]", *COLOURS, *COLOURS.values(), "the", "is", "what", "?", "thing"]


def write_model(folder, seed=0, **changes):
    """A random two-layer Llama in Hugging Face form, with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config = tiny_decoder_config(vocab_size=len(WORDS), hidden_size=32, eos_ids=(1,), **changes)
    model = Decoder(config, rngs=nnx.Rngs(seed))
    own = {"num_key_value_heads": config.num_kv_heads, "max_position_embeddings": 64}
    write_weights(folder, model, "llama", eos_token_id=1, **own)
    raw = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="[EOS]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return folder
