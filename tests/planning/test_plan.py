"""A step planned from shapes: its bytes, its exchanges, its products, the batch that fits."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from goat_jax.adapters.methods import method_spec
from goat_jax.cli.main import main
from goat_jax.cli.verbs import plan as verb
from goat_jax.cli.verbs.plan import remat_table
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.core.attention import Visible, attention_in_blocks
from goat_jax.core.cross_entropy import Output, chunked_cross_entropy
from goat_jax.core.flop_labels import PRODUCTS
from goat_jax.data.tasks.registry import language_files
from goat_jax.hardware.chips import CHIPS, Chip
from goat_jax.hardware.topologies import find_topology
from goat_jax.injection.report import InjectReport, Row
from goat_jax.planning.hlo_collectives import Exchange, collectives
from goat_jax.planning.plan import DoesNotFit, StepPlan, largest_rows, plan
from goat_jax.planning.remedies import remedies
from goat_jax.planning.start import StartPlan, start_plan
from goat_jax.sharding.config import MeshConfig
from goat_jax.sharding.rules import make_sharding_rules
from goat_jax.training.logging.flops import matmul_flops
from kinds import expect

GIB = 2**30


def test_loops_and_calls_count_as_often_as_they_run():
    text = """\
%loop.1 (p: f32[4]) -> f32[4] {
  %ag = f32[4]{0} all-gather(%q), dimensions={0}
}

%inner (p: f32[4]) -> f32[4] {
  %s = (f32[1]{0}, f32[4]{0}) all-gather-start(%q), dimensions={0}
  %d = f32[4]{0} all-gather-done(%s)
}

ENTRY %main (p: bf16[4]) -> f32[4] {
  %w = f32[4] while(%t), condition=%c, body=%loop.1, config={"known_trip_count":{"n":"5"}}
  %r = (bf16[8]{0}, f32[2,2]{1,0}) all-reduce(%a, %b), to_apply=%add
  ROOT %k = f32[4]{0} call(%w), to_apply=%inner
}
"""
    found = collectives(text)
    assert found == {"all-gather": Exchange(6, 5 * 16 + 16), "all-reduce": Exchange(1, 32)}


def test_a_combined_collective_counts_all_its_results():
    text = """\
ENTRY %main (p: f32[4]) -> f32[4] {
  %g = ((f32[2]{0:T(256)}, bf16[4]{0}), (f32[8]{0:T(256)}, bf16[16]{0})) all-gather-start(%a, %b)
  %r = (f32[8]{0}, f32[2,4]{1,0}) all-reduce-start(%c, %d), to_apply=%add
  ROOT %p = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%e)
}
"""
    found = {name: exchange.bytes for name, exchange in collectives(text).items()}
    assert found == {"all-gather": 64, "all-reduce": 64, "collective-permute": 16}


def test_a_loop_without_a_known_count_is_read_from_its_counter():
    """TPU compilers leave it so: the step is an argument, the limit lies in the condition."""
    text = """\
%cond (p: (u32[], bf16[4], u32[])) -> pred[] {
  %n = u32[]{:T(128)} constant(8)
  %p = (u32[], bf16[4], u32[]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p: (u32[], bf16[4], u32[])) -> (u32[], bf16[4], u32[]) {
  %p = (u32[], bf16[4], u32[]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[4] get-tuple-element(%p), index=1
  %two = u32[] get-tuple-element(%p), index=2
  %s = (bf16[4]{0}, bf16[4]{0}, u32[]) collective-permute-start(%x), channel_id=1
  %j = u32[] add(%i, %two)
  ROOT %t = (u32[], bf16[4], u32[]) tuple(%j, %x, %two)
}

%async_collective_fusion.1 (p: bf16[4]) -> bf16[16] {
  %g = bf16[16]{0} all-gather(%p), channel_id=7, dimensions={0}
}

%async_collective_fusion.2 (p: bf16[4]) -> bf16[16] {
  %g = bf16[16]{0} all-gather(%p), channel_id=7, dimensions={0}
}

ENTRY %main (x: bf16[4]) -> bf16[4] {
  %c = u32[] constant(0)
  %zero = u32[] copy(%c)
  %two = u32[] constant(2)
  %start = (u32[], bf16[4], u32[]) tuple(%zero, %x, %two)
  %w = (u32[], bf16[4], u32[]) while(%start), condition=%cond, body=%body
  %f = bf16[16] fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  %g = bf16[16] fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
}
"""
    found = collectives(text)
    assert found == {"all-gather": Exchange(1, 32), "collective-permute": Exchange(4, 4 * 8)}


def test_products_of_scans_conditions_and_gradients():
    x = jax.ShapeDtypeStruct((4, 8), "float32")
    w = jax.ShapeDtypeStruct((3, 8, 8), "float32")

    def loss(w, x):
        return jax.lax.scan(lambda c, k: (c @ k, None), x, w)[0].sum()

    once = 2 * 4 * 8 * 8
    assert matmul_flops(loss, w, x) == 3 * once
    assert matmul_flops(jax.grad(loss), w, x) == 9 * once
    assert matmul_flops(lambda w, x: (x @ w[0], jnp.ones(3))[1], w, x) == 0


def test_model_flops_leave_out_what_gradients_compute_again():
    """Attention needs 6 of its 7 products, a trained output layer 3 of 4."""
    x = jax.ShapeDtypeStruct((1, 8, 2, 4), "float32")

    def attention(q, k, v):
        return attention_in_blocks(q, k, v, Visible(), block=4).sum()

    product, mean = 2 * 2 * 8 * 8 * 4, 2 * 2 * 8 * 4  # of the weights' derivatives, per query
    for again, number in ((True, 7), (False, 6)):
        found = matmul_flops(jax.grad(attention, (0, 1, 2)), x, x, x, again=again)
        assert found == number * product + mean
    hidden, kernel = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((8, 4), (4, 16)))

    def loss(hidden, kernel):
        return chunked_cross_entropy(Output((hidden,), (kernel,)), jnp.zeros(8, jnp.int32))[0].sum()

    for again, number in ((True, 4), (False, 3)):
        found = matmul_flops(jax.grad(loss, (0, 1)), hidden, kernel, again=again)
        assert found == number * 2 * 8 * 4 * 16
    for kernel in ("dot_product_attention", "splash_mha"):
        assert sum(n.needed for name, n in PRODUCTS.items() if name.startswith(kernel)) == 6


def config():
    return RunConfig(
        ModelConfig("llama-2-7b", dtype="bfloat16", remat="full"),
        language_files("a.jsonl", "b.jsonl"),
        AdapterConfig("goat", total_rank=32, modules_to_save=()),
        train=TrainConfig(batch_size=8, eval_batch_size=8, max_length=64),
    )


@pytest.mark.slow
def test_llama_7b_is_planned_for_eight_devices():
    sharded = dataclasses.replace(config(), mesh=MeshConfig(fsdp=8))
    # On CPUs JAX itself mixes dtypes in the gradient of its bfloat16 attention.
    with jax.numpy_dtype_promotion("standard"):
        found = plan(sharded, find_topology("cpu:8", "v5e"))
    assert found.total > 6.7e9 and found.mesh == dict(data=1, fsdp=8, tensor=1, sequence=1)
    base = 2 * 6.74e9 / 8
    assert base < found.arguments < 1.15 * base  # every large array is cut in eight
    # Per layer 70 gathers of kernels and factors in three passes, and 3 sums of gradients.
    counts = {name: each.count for name, each in found.exchanges.items()}
    assert counts == {"all-gather": 32 * 70 + 3, "all-reduce": 32 * 3 + 3, "all-to-all": 1}
    layers, down, output = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32 * 4096 * 11008, 4096 * 32000
    # forward, the gradient by the input, and forward again but for `down`, whose output nobody uses
    products = 2 * 8 * 64 * (2 * (layers + output) + layers - down)
    assert products < found.flops < 1.05 * products
    assert set(found.roofline(CHIPS["v5e"])) == {"compute", "memory", "exchange"}


@pytest.mark.parametrize("bend", [0, 1, 40])
@pytest.mark.parametrize("known", [True, False])
def test_the_largest_batch_is_found_in_few_compilations(known, bend):
    """Memory that grows evenly or faster than that, by a compiler that says how much or refuses."""
    topology, asked = find_topology("cpu:8"), []

    def bytes_of(rows):
        return 10_000 + 100 * rows + bend * rows**2

    def peak_of(config):
        rows = config.train.batch_size // 8
        asked.append(rows)
        if not known and bytes_of(rows) > bytes_of(37) + 5:
            raise DoesNotFit("too large")
        return bytes_of(rows)

    assert largest_rows(config(), topology, bytes_of(37) + 5, peak_of=peak_of) == 37
    assert len(asked) < (5 if bend == 0 else 12), asked
    assert largest_rows(config(), topology, 10, peak_of=lambda _: 11) == 0
    assert largest_rows(config(), topology, 10, peak_of=lambda _: 9, most=100) == 100


def step_of(peak, flops=10**12, host=0):
    sizes = {"arguments": GIB, "temporaries": peak - GIB, "peak": peak, "host": host}
    small = remedies(dataclasses.replace(config(), model=ModelConfig("m")), None)
    return StepPlan(
        1, {}, 8, **sizes, exchanges={}, flops=flops, trained=1, total=2, remedies=small
    )


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_plan_that_does_not_fit_says_by_how_much_and_what_to_change(form, capsys, monkeypatch):
    """The refusal is one line with a compiler's exit code; the figures are printed."""
    sizes = [16 * GIB, 18 * GIB]
    monkeypatch.setattr(verb, "plan_run", lambda config, target: step_of(sizes.pop(0)))
    arguments = ["plan", "--config", "demo", "--topology", "cpu:1", "--chip", "v5e", *form]
    assert main(arguments) == 0
    fits = capsys.readouterr()
    assert ("\nfits into 16.000 GiB" in fits.out) == (not form) and fits.err == ""
    assert main(arguments) == 2
    over = capsys.readouterr()
    assert "fits" not in over.out and ('"peak": 19327352832' if form else "18.000") in over.out
    assert over.err == (
        "goat-jax: error: the step does not fit into the devices' memory (18.000 of 16.000 GiB, "
        "2.000 over): try --model.remat full, --model.quantize nf4, --train.grad-accum-steps 2, "
        "--train.max-length 32 or 2 devices (--mesh.sequence 2)\n"
    )


def test_what_is_in_use_already_is_no_remedy():
    used = ModelConfig("m", remat="offload", quantize="nf4")
    train = TrainConfig(batch_size=8, eval_batch_size=8, max_length=64)
    rules = make_sharding_rules(MeshConfig(fsdp=4, sequence=2))
    found = dataclasses.replace(config(), model=used, train=train)
    assert remedies(found, rules).text() == (
        "--train.grad-accum-steps 2, --train.max-length 32 or 16 devices (--mesh.sequence 4)"
    )
    one_row = dataclasses.replace(train, batch_size=4)
    assert remedies(dataclasses.replace(found, train=one_row), rules).text() == (
        "--train.max-length 32 or 16 devices (--mesh.sequence 4)"
    )


def test_micro_batches_stay_complete():
    """A batch of fewer rows than micro-batches on each device is refused, so it is no remedy."""
    train = TrainConfig(batch_size=16, eval_batch_size=1, max_length=64, grad_accum_steps=16)
    found = dataclasses.replace(config(), model=ModelConfig("m", remat="full"), train=train)
    assert "batch-size" not in remedies(found, None).text()
    assert "accum" not in remedies(found, None).text()
    three = dataclasses.replace(train, batch_size=48)
    assert "--train.batch-size 16" in remedies(dataclasses.replace(found, train=three), None).text()


def test_a_state_that_is_too_large_has_other_remedies():
    """Kernels trained in full are not quantized, and no shorter row makes a state smaller."""
    full = dataclasses.replace(config(), adapter=AdapterConfig(method="full"))
    assert remedies(full, None).text(arguments_fit=False) == "2 devices (--mesh.sequence 2)"
    assert remedies(config(), None).text(arguments_fit=False) == (
        "--model.quantize nf4 or 2 devices (--mesh.sequence 2)"
    )
    step = dataclasses.replace(step_of(6 * GIB), arguments=5 * GIB, remedies=remedies(full, None))
    with pytest.raises(DoesNotFit, match=r"2\.000 over\): try 2 devices"):
        step.check_memory(4 * GIB)


def test_policies_are_compared_by_bytes_and_recomputed_flops():
    steps = {
        "none": None,
        "full": step_of(3 * GIB, 15 * 10**11),
        "offload": step_of(2 * GIB, host=GIB),
    }
    _, _, *rows = (line.split() for line in remat_table(steps).splitlines())
    assert rows == [
        ["none", *["does", "not", "fit"] * 3],
        ["full", "1.000", "2.000", "3.000", "0.000", "1.500e+12", "50.0%"],
        ["offload", "1.000", "1.000", "2.000", "1.000", "1.000e+12", "0.0%"],
    ]


def test_a_report_says_how_long_rows_are_and_who_decomposes():
    one = dataclasses.replace(
        step_of(GIB), rows=1, tokens=4096, start=StartPlan(2, 4 * 10**14, 10**14)
    )
    on_gpu = verb.report(one, find_topology("cpu:1", "h100"), None)
    assert on_gpu.startswith("1 device of cpu:1, no mesh; 1 row of 4,096 tokens a step; trained")
    assert "\nat most 4,050,944 tokens/s, 4,050,944 per device\n" in on_gpu  # 1e12 FLOPs at 989e12
    assert "once, 4.000e+14 FLOPs, about 76 s (an estimate" in on_gpu
    on_tpu = verb.report(dataclasses.replace(one, rows=2), find_topology("cpu:1", "v5e"), None)
    assert "; 2 rows of 4,096 tokens a step" in on_tpu
    assert "once on the hosts, 1.000e+14 FLOPs, about 0.7 hours of one core" in on_tpu
    images = verb.report(dataclasses.replace(one, tokens=None), find_topology("cpu:1", "v5e"), None)
    assert "tokens" not in images


def test_a_start_counts_the_kernels_of_methods_that_decompose():
    rows = (
        Row("layers.{}.up", range(2, 5), (64, 96), 1, "adapter"),
        Row("pooler", None, (64, 64), 1, "adapter"),
        Row("classifier", None, (64, 2), 1, "trained in full"),
    )
    found = InjectReport(rows, 1, 1, 1, 1)
    start = start_plan(method_spec("goat"), found)
    # All, seven eighths and half of that: 4 H^2 W + 9 H^3, and a product of the vectors.
    up, pooler = (
        sum(4 * h**2 * wide + 9 * h**3 for h in (64, 56, 28)) + 2 * 64 * (56**2 + 28**2)
        for wide in (96, 64)
    )
    host = sum(4 * 64**2 * wide + 9 * 64**3 for wide in (96, 96, 96, 64))
    assert start == StartPlan(4, 3 * up + pooler, host)
    assert start.core_hours == host / 40e9 / 3600
    assert start_plan(method_spec("lora"), found) == StartPlan(0, 0, 0)
    chip = expect(Chip, find_topology("cpu:1", "v5e").chip)
    assert start.seconds(chip, 2) == 2 * start.seconds(chip, 64)  # four kernels, four devices
    assert start.seconds(chip, 1) > start.flops / chip.flops
