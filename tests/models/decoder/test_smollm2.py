"""SmolLM2-135M from its package, against the same weights in torch: logits and greedy answers."""

import jax
import numpy as np
import pytest
import torch
import transformers

from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.errors import UserError
from goat_jax.evaluation.sampler import Generator, Sampling
from goat_jax.models.decoder.model import Decoder
from goat_jax.models.load import load_model
from goat_jax.pretrained.packaged_models import smollm2_file
from goat_jax.pretrained.resolve import open_checkpoint
from kinds import expect

# A real model of 135 million parameters. CI compares made decoders with torch's
# (tests/models/decoder/test_decoder_parity.py) and reads made files of every kind
# (tests/pretrained/gguf/test_gguf.py).
pytestmark = pytest.mark.nightly

PROMPTS = [
    "The capital of France is",
    "The capital of Japan is",
    "Water boils at a temperature of",
    "def fibonacci(n):",
    "Once upon a time, there was a",
    "The three primary colours are",
    "2 + 2 =",
    "The opposite of hot is",
    "A dog is an animal that",
    "import numpy as np\n",
    "Question: How many days are in a week?\nAnswer:",
    "The largest planet in the solar system is",
    "She opened the door and",
    "To make bread you need flour,",
    "William Shakespeare wrote",
    "The square root of 81 is",
    "In 1969, humans first",
    "Photosynthesis is the process by which",
    "My favourite season is",
    "Dear Sir or Madam,",
]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def both():
    """Our model and tokenizer, and torch's model with the very same dequantised weights."""
    try:
        path = smollm2_file()
    except UserError as error:
        pytest.skip(f"the package of SmolLM2 is out of reach: {error}")
    settings, weights = open_checkpoint(path)
    config = transformers.LlamaConfig(**settings)
    theirs = transformers.LlamaForCausalLM(config).eval()
    tensors = {name: torch.from_numpy(weights[name]) for name in weights}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    theirs.tie_weights()
    ours = expect(Decoder, load_model(path, key=jax.random.key(0)).model)
    return Generator(ours, load_tokenizer(path)), theirs


def test_greedy_answers_are_torchs(both):
    generator, theirs = both
    tokenizer = generator.tokenizer
    encoded = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with jax.default_matmul_precision("highest"):
        steps = list(generator.tokens(encoded, Sampling(max_new_tokens=NEW_TOKENS)))
    ours = np.stack(steps, axis=1)
    for ids, answer in zip(encoded, ours, strict=True):
        with torch.no_grad():
            whole = theirs.generate(
                torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=2
            )
        expected = whole[0, len(ids) :].numpy()
        np.testing.assert_array_equal(answer[: len(expected)], expected)


def test_logits_are_torchs(both):
    generator, theirs = both
    ids = np.array([generator.tokenizer(" ".join(PROMPTS))["input_ids"][:96]])
    with jax.default_matmul_precision("highest"):
        first, _ = generator._extend(
            generator._trainable,
            generator._base,
            ids,
            np.ones_like(ids),
            generator._empty(1, ids.shape[1]),
        )
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits
    np.testing.assert_allclose(np.asarray(first), expected[:, -1].numpy(), rtol=0, atol=1e-3)
    # Both have our reading of the file (test_gguf_real.py). It predicts English: 4.39, but 5.56
    # with the rows of queries and keys left interleaved.
    following = torch.nn.functional.cross_entropy(expected[0, :-1], torch.from_numpy(ids[0, 1:]))
    assert following.item() < 4.5
