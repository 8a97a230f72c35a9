"""Tokenizers of every kind, trained on a few sentences in a moment, and chat templates for them."""

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as train

MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>"]
CORPUS = [
    "Question: what is 2 + 2 ? Answer: 4",
    "Answer: 4 is the answer to the question: two and two",
    "the user says hello to the assistant, the assistant says hello",
    "system: you are a helpful assistant. naïve café 日本 🐐 goats\n\nand more",
] * 4


def _byte_level():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = train.BpeTrainer(
        vocab_size=420, initial_alphabet=letters, special_tokens=MARKS, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    # As GPT-2 has it: spaces are cut off the offsets.
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    return raw


def _llama_2():
    """BPE over the whole text with a dummy prefix, and bytes for unknown letters."""
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()  # as sentencepiece: no pair across a space
    tokens = ["<unk>", *MARKS, *bytes_]
    trainer = train.BpeTrainer(vocab_size=460, special_tokens=tokens, show_progress=False)
    words.train_from_iterator(CORPUS, trainer)
    found = json.loads(words.to_str())["model"]
    merges = [tuple(merge) for merge in found["merges"]]
    options = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    raw = Tokenizer(models.BPE(found["vocab"], merges, **options))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    raw.normalizer = normalizers.Sequence(steps)
    raw.add_special_tokens(["<unk>", *MARKS])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return _started(raw, "<s>")


def _unigram():
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = train.UnigramTrainer(
        vocab_size=140, unk_token="<unk>", special_tokens=["<unk>", *MARKS], show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    return _started(raw, "<s>")


def _word_piece():
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    tokens = ["[UNK]", "[CLS]", "[SEP]", *MARKS]
    trainer = train.WordPieceTrainer(vocab_size=160, special_tokens=tokens, show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    return _started(raw, "[CLS]", "[SEP]")


def _started(raw, start, *end):
    single = " ".join([start, "$A", *end])
    ids = [(token, raw.token_to_id(token)) for token in (start, *end)]
    raw.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return raw


KINDS = {
    "byte_level": _byte_level,
    "llama_2": _llama_2,
    "unigram": _unigram,
    "word_piece": _word_piece,
}


def make_tokenizer(kind, template=None) -> Any:
    """One of `KINDS` as a Hugging Face tokenizer with a template of `TEMPLATES`."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](),
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=MARKS[2:],
    )
    fast.chat_template = None if template is None else TEMPLATES[template]
    return fast


_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
)
TEMPLATES = {
    "chatml": "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama_2": _SYSTEM + "{% for m in loop_messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama_3": "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}",
    "marked": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}
