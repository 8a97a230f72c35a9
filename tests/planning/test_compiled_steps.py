"""Whole steps compiled for GPUs and TPUs that are not there: bytes, FLOPs, exchanges, no scores.

`.ci/compilers` makes an environment with both compilers and runs this file.
"""

import functools
import importlib.util
import re

import jax
import pytest

from goat_jax.cli.arguments.config import read_config
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.hardware.topologies import find_topology
from goat_jax.planning import plan as module
from goat_jax.planning.plan import plan

COMPILER = {"h100": ("jax_cuda12_plugin", "plan-gpu"), "v5e": ("libtpu", "tpu")}
GIB = 2**30

pytestmark = pytest.mark.nightly


def needs_compiler(topology):
    package, extra = COMPILER[topology.partition(":")[0]]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no compiler for {topology}: pip install 'goat-jax[{extra}]'")


def compiled(config, topology):
    """Returns the plan of a step and the text of its optimised program."""
    needs_compiler(topology)
    texts = []
    usual = jax.default_matmul_precision("default"), jax.numpy_dtype_promotion("standard")
    with pytest.MonkeyPatch.context() as patch, usual[0], usual[1]:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        count = module.collectives
        patch.setattr(
            module, "collectives", lambda text, nodes: texts.append(text) or count(text, nodes)
        )
        return plan(config, find_topology(topology)), texts[0]


@functools.cache
def decoder(method, topology, model="llama-3-8b"):
    config = RunConfig(
        ModelConfig(model, dtype="bfloat16", remat="full"),
        language_files("a.jsonl", "b.jsonl"),
        AdapterConfig(method, total_rank=32, modules_to_save=()),
        train=TrainConfig(batch_size=16, eval_batch_size=16, max_length=4096),
    )
    return compiled(config, topology)


def bytes_of(found):
    return found.arguments + found.temporaries


@pytest.mark.parametrize("topology", ["h100:8", "v5e:4x4"])
def test_llama_goat_is_of_lora_s_size(topology):
    (goat, _), (lora, _) = decoder("goat", topology), decoder("lora", topology)
    assert bytes_of(goat) <= 1.03 * bytes_of(lora)
    assert goat.flops <= 1.01 * lora.flops


def test_llama_at_4096_tokens_fits_into_five_gib_of_temporaries():
    assert decoder("goat", "h100:8")[0].temporaries <= 5.0 * GIB


@pytest.mark.parametrize("topology", ["h100:8", "v5e:4x4"])
def test_no_array_of_all_pairs_of_tokens(topology):
    """In a model without another size of 4,096."""
    _, text = decoder("goat", topology, "smollm2-135m")
    assert not re.search(r"\b4096,4096\b", text)


@pytest.mark.parametrize(
    ("config", "model"),
    [("glue:task=rte", "roberta-large"), ("vision:task=dtd", "openai/clip-vit-large-patch14")],
)
def test_dropout_without_remat_keeps_one_input(config, model):
    """The paper's encoder and vision settings: adapters drop out their input, routers do not."""
    goat, lora = (
        compiled(read_config(f"{config},method={method},model={model}", [], "plan"), "h100:4")[0]
        for method in ("goat", "lora")
    )
    assert bytes_of(goat) <= 1.03 * bytes_of(lora)
    assert goat.flops <= 1.01 * lora.flops
