"""Whole steps compiled for GPUs and TPUs that are not there: bytes, FLOPs, exchanges, no scores.

`.ci/compilers` makes an environment with both compilers and runs this file.
"""

import functools
import importlib.util
import re

import jax
import pytest

from goat_jax.adapters.methods import METHODS
from goat_jax.cli.arguments.config import read_config
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.hardware.topologies import find_topology
from goat_jax.planning import plan as module
from goat_jax.planning.plan import plan, planned_run
from goat_jax.sharding.config import MeshConfig

COMPILER = {"h100": ("jax_cuda12_plugin", "plan-gpu"), "v5e": ("libtpu", "tpu")}
GIB = 2**30
RANKS = {"multilora": 24, "molora_soft": 20}

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


def decoder_config(
    method, model="llama-3-8b", rows=16, tokens=4096, mesh=(1, 1, 1, 1), packing=True
):
    return RunConfig(
        ModelConfig(model, dtype="bfloat16", remat="full"),
        language_files("a.jsonl", "b.jsonl", packing=packing),
        AdapterConfig(method, total_rank=RANKS.get(method, 32), modules_to_save=()),
        train=TrainConfig(batch_size=rows, eval_batch_size=rows, max_length=tokens),
        mesh=MeshConfig(*mesh),
    )


@functools.cache
def decoder(method, topology, *sizes, **options):
    return compiled(decoder_config(method, *sizes, **options), topology)


def counts(found):
    return {name: each.count for name, each in found.exchanges.items()}


def bytes_of(found):
    return found.arguments + found.temporaries


@pytest.mark.parametrize("topology", ["h100:8", "v5e:4x4"])
def test_llama_goat_is_of_lora_s_size(topology):
    (goat, _), (lora, _) = decoder("goat", topology), decoder("lora", topology)
    assert bytes_of(goat) <= 1.03 * bytes_of(lora)
    assert goat.flops <= 1.01 * lora.flops


@pytest.mark.parametrize("topology", ["h100:8", "v5e:4x4"])
def test_llama_at_4096_tokens_fits_into_five_gib_of_temporaries(topology):
    assert decoder("goat", topology)[0].temporaries <= 5.0 * GIB


def pairs_of_tokens(text):
    """The leading sizes of arrays of all pairs; in a model without another size of 4,096.

    What a fusion computes inside has no memory and is left out.
    """
    outside = [part for part in text.split("\n\n") if not part.lstrip().startswith("%fused")]
    return set(re.findall(r"\w+\[([\d,]*)4096,4096\]", "\n".join(outside)))


@pytest.mark.parametrize(
    ("topology", "model", "packing", "most"),
    [("h100:8", "llama-3-8b", True, 1.1), ("v5e:4x4", "smollm2-135m", False, 1.02)],
)
def test_dora_keeps_little_more_than_lora(topology, model, packing, most):
    dora, lora = (
        decoder(method, topology, model, packing=packing)[0] for method in ("dora", "lora")
    )
    assert dora.temporaries <= most * lora.temporaries


def test_packed_rows_on_tpus_have_segments_alone():
    assert pairs_of_tokens(decoder("goat", "v5e:4x4", "smollm2-135m")[1]) == set()


# MoELoRA's gate needs numbers of tasks, which rows of a single task do not have.
OF_ONE_TASK = [name for name in METHODS if name != "moelora"]


@pytest.mark.parametrize("method", OF_ONE_TASK)
def test_no_method_gives_a_tpu_s_compiler_an_array_of_all_pairs_of_tokens(method):
    """The program before it is compiled, which for a TPU takes one to two minutes a method."""
    needs_compiler("v5e:4x4")
    config = decoder_config(method, "smollm2-135m", packing=False)
    run = planned_run(config, find_topology("v5e:4x4"))[0]
    text = run.train_step.lower(run.state, run.base, run.batch).as_text()
    assert "x4096x576x" in text and "4096x4096x" not in text


@pytest.mark.parametrize("topology", ["h100:8", "v5e:4x4"])
@pytest.mark.parametrize("method", OF_ONE_TASK)
def test_no_method_has_an_array_of_all_pairs_of_tokens(method, topology):
    text = decoder(method, topology, "smollm2-135m", packing=False)[1]
    assert pairs_of_tokens(text) == set()


def test_packed_rows_have_a_mask_on_gpus_but_no_scores():
    """cuDNN takes segments as a mask alone: one for each of a device's two rows, none by head."""
    assert pairs_of_tokens(decoder("goat", "h100:8", "smollm2-135m")[1]) == {"2,", "2,1,"}


def test_exchanges_of_a_step_on_gpus():
    """A change that adds one fails here; so may a new XLA, whose counts then replace these."""
    assert counts(decoder("goat", "h100:8", "smollm2-135m")[0]) == {
        "all-gather": 30 * 2 + 2,
        "all-reduce": 30 * 3 + 3,
        "reduce-scatter": 30,
        "all-to-all": 1,
    }


# Queries, keys, values and outputs of 32 layers, forward, again and backward.
TOKENS_FOR_HEADS = 32 * 4 * 3
LONG = {
    "h100:8": ((1, 2, 1, 4), 7.5, [389, 102, 32, TOKENS_FOR_HEADS, 3]),
    "v5e:4x4": ((1, 2, 1, 8), 2.9, [1700, 264, 0, TOKENS_FOR_HEADS, 4360]),
}


@pytest.mark.parametrize("topology", list(LONG))
def test_long_rows_exchange_tokens_for_heads_alone(topology):
    """LLaMA-3-8B at 32,768 tokens, in GiB of temporaries; what is gathered are parameters.

    The figures of v5e are those of the libtpu that jax 0.10.2 asks for, 0.0.42.
    """
    mesh, temporaries, exchanges = LONG[topology]
    found, text = decoder("goat", topology, rows=2, tokens=32768, mesh=mesh)
    kinds = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    assert [counts(found).get(kind, 0) for kind in kinds] == exchanges
    assert found.temporaries <= temporaries * GIB
    assert "[1,32768,4096]" not in text  # no hidden states of complete rows


@pytest.mark.parametrize(
    ("config", "model", "most", "flops"),
    [
        ("glue:task=rte", "roberta-large", 10.7, 1.01),
        ("vision:task=dtd", "openai/clip-vit-base-patch32", 2.35, 1.012),
        ("vision:task=dtd", "openai/clip-vit-large-patch14", 29.5, 1.01),
    ],
)
def test_dropout_without_remat_keeps_one_input(config, model, most, flops):
    """The paper's encoder and vision settings: adapters drop out their input, routers do not.

    Temporaries in GiB are a few per cent above what they are; norms and activations keep no more
    than their inputs. The router of eight experts is one in ninety of ViT-B/32's FLOPs.
    """
    goat, lora = (
        compiled(read_config(f"{config},method={method},model={model}", [], "plan"), "h100:4")[0]
        for method in ("goat", "lora")
    )
    assert bytes_of(goat) <= 1.03 * bytes_of(lora)
    assert goat.flops <= flops * lora.flops
    assert goat.temporaries <= most * GIB
