"""Compiles attention, forward and backward, for a device that need not exist.

``compile_attention.py tpu|gpu WAY CONDITION TOKENS ...`` prints a line of JSON for each three:
the bytes of temporaries, the targets of custom calls, and whether the optimised program has an
array of tokens x tokens. A process of its own, since jax reads the settings before it starts.
"""

import json
import os
import re
import sys


def described(platform: str):
    """Returns the topology of a TPU v5e or an H100 as its compiler describes it."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    from goat_jax.hardware.topologies import find_topology

    return find_topology({"tpu": "v5e:2x2", "gpu": "h100:1"}[platform])


def main(platform: str, *rows: str) -> None:
    """Compiles and prints every three of `rows`."""
    topology = described(platform)
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from goat_jax.core.attention import Visible
    from goat_jax.nn.attention import AttentionPlan, attention
    from kinds import present

    device = topology.devices[0]
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
        compiled = step.lower(query, key, key, ids).compile(dict(topology.options))
        text = present(compiled.as_text())
        found = {
            "temporaries": present(compiled.memory_analysis()).temp_size_in_bytes,
            "calls": sorted(set(re.findall(r'custom_call_target="([^"]+)"', text))),
            "square": bool(re.search(rf"\b{tokens},{tokens}\b", text)),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
