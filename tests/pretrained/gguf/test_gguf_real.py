"""SmolLM2's own GGUF file, against transformers' reading of it."""

import numpy as np
import pytest

from goat_jax.errors import UserError
from goat_jax.pretrained.fingerprint import fingerprint
from goat_jax.pretrained.gguf.weights import open_gguf
from goat_jax.pretrained.packaged_models import smollm2_file


# CI reads made files of every kind (test_gguf.py).
@pytest.mark.slow
@pytest.mark.nightly
def test_tensors_and_config_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")  # transformers needs it for GGUF
    transformers = pytest.importorskip("transformers")
    try:
        path = smollm2_file()
    except UserError as error:
        if "could not fetch" not in str(error):
            raise
        pytest.skip(str(error))
    config, weights = open_gguf(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    theirs.pop("lm_head.weight")  # tied
    assert set(weights) == set(theirs) and config["tie_word_embeddings"]
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(weights[name], tensor)
    assert sum(int(np.prod(entry.shape)) for entry in weights.entries.values()) == 134_515_008
    told = model.config.to_dict()
    told["rope_theta"] = told["rope_parameters"]["rope_theta"]
    same = set(config) - {"rms_norm_eps", "pad_token_id"}
    assert {key: config[key] for key in same} == {key: told[key] for key in same}
    np.testing.assert_allclose(config["rms_norm_eps"], told["rms_norm_eps"], rtol=1e-6)
    assert len(fingerprint(weights)) == 64
