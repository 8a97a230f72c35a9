"""Compiles attention, forward and backward, for a device that need not exist.

``compile_attention.py tpu|gpu WAY CONDITION TOKENS ...`` prints a line of JSON for each three:
the bytes of temporaries, the targets of custom calls, and whether the optimised program has an
array of tokens x tokens. A process of its own, since jax reads the settings before it starts.
"""

import json
import os
import re
import sys
from pathlib import Path

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 device_memory_size: 85899345920 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""XLA's description of a GPU (GpuTargetConfigProto), from NVIDIA's data sheet and CUDA's tables."""


def described(platform: str):
    """Returns a device of a TPU v5e or an H100 as its compiler describes it."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu" if platform == "tpu" else ""
    if platform == "gpu":
        import nvidia.cuda_nvcc  # its folder has the assembler ptxas

        tools = Path(next(iter(nvidia.cuda_nvcc.__path__))) / "bin"
        os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"
        # Both would need a device to try programs on.
        flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
        os.environ["XLA_FLAGS"] = flags
    from jax.experimental import topologies

    if platform == "tpu":
        return topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
    options = {"target_config": H100, "topology": "1x1x1"}
    return topologies.get_topology_desc(platform="cuda", **options).devices[0]


def main(platform: str, *rows: str) -> None:
    """Compiles and prints every three of `rows`."""
    device = described(platform)
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from goat_jax.core.attention import Visible
    from goat_jax.nn.attention import AttentionPlan, attention

    here = SingleDeviceSharding(device)
    for way, condition, tokens in zip(*[iter(rows)] * 3, strict=True):
        count = int(tokens)
        query = jax.ShapeDtypeStruct((2, count, 32, 128), jnp.bfloat16, sharding=here)
        key = jax.ShapeDtypeStruct((2, count, 8, 128), jnp.bfloat16, sharding=here)
        ids = jax.ShapeDtypeStruct((2, count), jnp.int32, sharding=here)

        def total(query, key, value, ids, way=way, condition=condition):
            visible = {
                "causal": Visible(causal=True),
                "window": Visible(causal=True, window=256),
                "padding": Visible(causal=True, real=ids > 0),
                "segments": Visible(causal=True, segments=ids),
            }[condition]
            plan = AttentionPlan(way, device)
            out = attention(query, key, value, visible=visible, plan=plan)
            return out.astype(jnp.float32).sum()

        step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        compiled = step.lower(query, key, key, ids).compile()
        text = compiled.as_text()
        found = {
            "temporaries": compiled.memory_analysis().temp_size_in_bytes,
            "calls": sorted(set(re.findall(r'custom_call_target="([^"]+)"', text))),
            "square": bool(re.search(rf"\b{tokens},{tokens}\b", text)),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
