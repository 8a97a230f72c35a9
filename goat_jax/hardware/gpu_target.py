"""Text descriptions of NVIDIA GPUs for XLA's compiler, which then needs no GPU."""

from __future__ import annotations

from goat_jax.hardware.chips import Chip

SHARED_MEMORY = {(8, 0): 164, (8, 9): 100, (9, 0): 228, (10, 0): 228}
"""Compute capability -> shared memory of a multiprocessor in KiB (CUDA C++ Programming Guide).

One block can use all of it but one KiB.
"""


def gpu_target(name: str, chip: Chip) -> str:
    """Returns XLA's ``GpuTargetConfigProto`` of a chip in text form.

    Its fields are described in XLA's ``stream_executor/device_description.proto``.

    Args:
        name: the device kind that the described devices will have.
        chip: a chip with `cuda` properties.
    """
    cuda = chip.cuda
    if cuda is None:
        raise ValueError(f"{name} is no GPU")
    major, minor = cuda.capability
    shared = SHARED_MEMORY[cuda.capability] * 1024
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {cuda.multiprocessors}
  fpus_per_core: {64 if cuda.capability == (8, 0) else 128}
  clock_rate_ghz: {cuda.clock}
  device_memory_size: {int(chip.memory)}
  memory_bandwidth: {int(chip.bandwidth)}
  l2_cache_size: {cuda.cache}
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared - 1024}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {1536 if minor == 9 else 2048}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""
