"""Decompositions kept by content: found again, mended when damaged, shared by writers."""

import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from threadpoolctl import threadpool_limits

from disks import full_disk
from goat_jax.adapters.methods import method_spec
from goat_jax.core.gram_svd import triplets_by_gram
from goat_jax.core.svd import Svd, svd_by_gram
from goat_jax.errors import Notice, UserError
from goat_jax.injection import svd_cache as svd_store
from goat_jax.injection.inject import inject
from goat_jax.injection.svd_cache import ROUTES, SvdConfig, SvdStore
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.nn.named_modules import find_modules
from goat_jax.testing import assert_close
from tiers import each

KEY = jax.random.key(0)
INDEX = np.array([0, 5, 2])


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def adapted(store, method="goat", **options):
    model = Encoder(tiny_config(num_layers=2), rngs=nnx.Rngs(0))
    spec = method_spec(method, **({"total_rank": 8, "num_experts": 4} | options))
    inject(model, spec, ["query", "0.output.dense"], key=KEY, svds=store)
    adapted = [(s.module, s.module.adapter) for s in find_modules(model)]
    arrays = [(module, adapter.factors()) for module, adapter in adapted if adapter]
    return [(module.kernel[...], own["a"], own["b"]) for module, own in arrays]


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["segments", "full"])
@pytest.mark.parametrize("method", each(["goat", "kasa"], ["goat"]))
def test_a_second_start_finds_everything_and_has_the_same_bits(tmp_path, keep, method):
    experts = {} if method == "goat" else {"num_experts": 1}
    plain = adapted(None, method, **experts)
    store = SvdStore(tmp_path, keep, route="lapack")  # signs as without a store
    first = adapted(store, method, **experts)
    kernels = store.computed
    assert kernels == 3 and store.found == 0
    again = adapted(store, method, **experts)
    assert (store.computed, store.found) == (kernels, kernels)
    for one, other, without in zip(*map(jax.tree.leaves, (first, again, plain)), strict=True):
        np.testing.assert_array_equal(one, other)
        assert_close(one, without, 1e-5)


@pytest.mark.slow
def test_sweeps_share_what_their_choice_allows(tmp_path):
    segments, full = SvdStore(tmp_path / "s"), SvdStore(tmp_path / "f", "full")
    for store in (segments, full):
        adapted(store)
        adapted(store, rho=3.0, eta=0.5)
    kernels = segments.computed
    assert (segments.found, full.found) == (kernels, kernels)
    for store in (segments, full):
        adapted(store, num_experts=2)
        adapted(store, method="pissa", total_rank=4, num_experts=1)
    assert segments.computed == 3 * kernels and full.computed == kernels


def test_another_kernel_dtype_or_index_is_another_file(tmp_path):
    store, kernel = SvdStore(tmp_path), random(8, 6)
    store.triplets(kernel, INDEX)
    changed = kernel.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], 9)
    for other, index in ((changed, INDEX), (kernel.astype(np.float16), INDEX), (kernel, INDEX[:2])):
        store.triplets(other, index)
    assert store.computed == len(list(tmp_path.iterdir())) == 4 and store.found == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    store, kernel = SvdStore(tmp_path), random(8, 6)
    good = store.triplets(kernel, INDEX)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"flip": content, "cut": content[:-40], "empty": b""}[damage])
    for want in (2, 2):  # mended once, found then
        got = store.triplets(kernel, INDEX)
        assert store.computed == want
        jax.tree.map(np.testing.assert_array_equal, got, good)
    assert store.found == 1


def test_a_damaged_header_is_computed_again(tmp_path):
    """The numbers are untouched, their order of axes is not."""
    store, kernel = SvdStore(tmp_path), random(8, 6)
    good = store.triplets(kernel, INDEX)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"[8,3]", b"[3,8]").replace(b"[3,6]", b"[6,3]"))
    jax.tree.map(np.testing.assert_array_equal, store.triplets(kernel, INDEX), good)
    assert store.computed == 2


BROKEN = {
    "full": lambda folder: None,
    "no folder": lambda folder: folder.touch(),
    "below a file": lambda folder: folder.parent.rmdir() or folder.parent.touch(),
    "a dead link": lambda folder: folder.symlink_to("/dev/null/nowhere"),
}


@pytest.mark.parametrize("keep", ["segments", "full"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_store_that_cannot_be_used_costs_one_warning(tmp_path, kind, keep):
    folder = tmp_path / "cache" / "svd"
    folder.parent.mkdir()
    store, kernels = SvdStore(folder, keep), random(3, 8, 6)
    # Compiles now: jax would keep cut programs on a full disk.
    SvdStore(tmp_path / "good", keep).of_layers(jnp.asarray(kernels), [INDEX] * 3)
    BROKEN[kind](folder)
    disk = full_disk(100) if kind == "full" else contextlib.nullcontext()
    with disk, pytest.warns(Notice) as notices:
        found = store.of_layers(jnp.asarray(kernels), [INDEX] * 3)
    for svd, kernel in zip(found, kernels, strict=True):
        assert_close(svd.s, jnp.linalg.svd(kernel)[1][INDEX], 1e-5)
    (line,) = (str(notice.message) for notice in notices)
    assert f"cannot use the cache {folder} (" in line and "\n" not in line
    assert kind != "full" or list(folder.iterdir()) == []


def test_many_writers_leave_one_whole_file(tmp_path):
    kernel = random(40, 30)
    stores = [SvdStore(tmp_path, "full") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda store: store.triplets(kernel, INDEX), stores))
    assert len(list(tmp_path.iterdir())) == 1
    last = SvdStore(tmp_path, "full")
    last.triplets(kernel, INDEX)
    assert last.found == 1


@pytest.mark.parametrize(
    ("layers", "cores", "kernels_in_memory", "at_a_time", "threads"),
    [(6, 4, 9, 4, 1), (6, 8, 3, 3, 2), (1, 4, 9, 1, 4), (3, 4, 0, 1, 4)],
)
def test_as_many_at_a_time_as_cores_and_memory_allow(
    layers, cores, kernels_in_memory, at_a_time, threads, monkeypatch
):
    """And every core has a thread."""
    running, most, limits, full, gram = [], [], [], Event(), ROUTES["gram"]

    def watched(kernel, index):
        running.append(1)
        most.append(len(running))
        if len(running) >= at_a_time:
            full.set()
        full.wait(60)
        time.sleep(0.05)  # one too many would start now
        running.pop()
        return gram(kernel, index)

    def limited(*args):
        limits.append(args)
        return threadpool_limits(*args)

    monkeypatch.setitem(ROUTES, "gram", watched)
    monkeypatch.setattr(svd_store.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(svd_store, "threadpool_limits", limited)
    monkeypatch.setattr(svd_store, "WORK_BYTES", kernels_in_memory * svd_store.COPIES * 8 * 48)
    kernels = jnp.asarray(random(layers, 8, 6))
    found = SvdStore(None).of_layers(kernels, [INDEX] * layers)
    for kernel, svd in zip(kernels, found, strict=True):
        assert_close(svd.s, jnp.linalg.svd(kernel)[1][INDEX], 1e-5)
    assert max(most) == at_a_time and limits == [(threads, "blas")]


def test_equal_layers_of_a_stack_are_decomposed_once(tmp_path, monkeypatch):
    gram = ROUTES["gram"]

    def slow(kernel, index):
        time.sleep(0.3)  # all layers are looked up before the first one is there
        return gram(kernel, index)

    monkeypatch.setitem(ROUTES, "gram", slow)
    store, kernel = SvdStore(tmp_path, route="gram"), random(8, 6)
    stack = jnp.stack([kernel, random(8, 6, seed=1), kernel])
    first, other, again = store.of_layers(stack, [INDEX] * 3)
    assert (store.computed, store.found) == (2, 1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.abs(first.s - other.s).max() > 1e-3


@pytest.mark.parametrize("shape", [(40, 40), (30, 50), (50, 30)])
@pytest.mark.parametrize("smallest", [1e-1, 1.1e-5, 1e-6, 0.0])
def test_the_gram_route_is_within_its_bound(shape, smallest):
    h = min(shape)
    u, _ = np.linalg.qr(random(shape[0], h).astype(np.float64))
    v, _ = np.linalg.qr(random(shape[1], h, seed=1).astype(np.float64))
    s = np.geomspace(1.0, max(smallest, 1e-12), h)
    s[-1] = smallest
    got = svd_by_gram(((u * s) @ v.T).astype(np.float64))
    assert np.abs(got.s - s).max() < 1e-7
    assert np.abs((got.u * got.s) @ got.vt - (u * s) @ v.T).max() < 5e-7
    for part in (got.u.T @ got.u, got.vt @ got.vt.T):
        assert np.abs(part - np.eye(h)).max() < 1e-5


SPECTRA = {
    "a random matrix's": np.linspace(1.0, 0.01, 72),
    "falling by a power": np.arange(1.0, 73.0) ** -0.7,
    "four decades": np.geomspace(1.0, 1e-4, 72),
    "five decades": np.geomspace(1.0, 1e-5, 72),
}


def of_spectrum(s, shape):
    u, _ = np.linalg.qr(random(shape[0], len(s)).astype(np.float64))
    v, _ = np.linalg.qr(random(shape[1], len(s), seed=1).astype(np.float64))
    return ((u * s) @ v.T).astype(np.float32)


@pytest.fixture(scope="module")
def by_device():
    return jax.jit(triplets_by_gram)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_device_s_segments_are_as_exact_as_those_of_float32_s_svd(spectrum, by_device):
    """Its measured error is that of float64, for the top, four blocks and the minor ones."""
    kernel = of_spectrum(SPECTRA[spectrum], (96, 72))
    u, s, vt = np.linalg.svd(kernel.astype(np.float64), full_matrices=False)
    index = np.array([0, 1, 2, 18, 19, 36, 37, 54, 55, 69, 70, 71])
    found, error = by_device(kernel, index)
    got = Svd(*(np.asarray(part, np.float64) for part in found))
    forth = np.linalg.norm(kernel @ got.vt.T - got.u * got.s, axis=0)
    back = np.linalg.norm(kernel.T @ got.u - got.vt.T * got.s, axis=0)
    turned = np.abs(got.u.T @ got.u - np.eye(12)).max()
    assert max(forth.max(), back.max()) / s[0] < 2e-6 and turned < 2e-6
    assert float(error) < 2e-6
    assert np.abs(got.s - s[index]).max() < 5e-7 * s[0]
    for segment in (slice(0, 3), slice(3, 9), slice(9, 12)):
        want = (u[:, index[segment]] * s[index[segment]]) @ vt[index[segment]]
        product = (got.u[:, segment] * got.s[segment]) @ got.vt[segment]
        # Neighbouring triplets mix by rounding, by more or less on each kind of processor.
        assert np.abs(product - want).max() < 2e-6 * s[0]


def test_a_kernel_that_the_device_cannot_decompose_is_left_to_the_host(by_device):
    """It has values far below float32's digits, of which the error tells."""
    kernel, index = of_spectrum(np.geomspace(1.0, 1e-12, 72), (96, 72)), np.array([0, 36, 71])
    assert not float(by_device(kernel, index)[1]) < svd_store.DEVICE_ERROR
    stores = [SvdStore(None, route=route) for route in ("device", "gram")]
    got, want = (store.triplets(kernel, index) for store in stores)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert re.fullmatch(
        r"kernels decomposed on the host: 1, because the device's error was up to [\d.e+-]+, above "
        "1e-05",
        stores[0].note() or "",
    )
    assert stores[1].note() is None


def test_a_note_counts_the_kernels_of_all_processes(monkeypatch):
    from jax.experimental import multihost_utils

    def gathered(found):
        return np.stack([found, [2.0, 3e-4]])

    store = SvdStore(None, route="device", inexact=[2e-5])
    assert "host: 1, because the device's error was up to 2.0e-05" in (store.note() or "")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    assert "host: 3, because the device's error was up to 3.0e-04" in (store.note() or "")


def test_every_device_decomposes_whole_layers_of_its_own(monkeypatch):
    used = []

    def watched(kernel, index):
        used.append(next(iter(jnp.zeros(1).devices())))
        return ROUTES["gram"](kernel, index)

    monkeypatch.setitem(ROUTES, "device", watched)
    kernels = random(8, 8, 6)
    found = SvdStore(None, route="device").of_layers(jnp.asarray(kernels), [INDEX] * 8)
    assert set(used) == set(jax.local_devices())
    for kernel, svd in zip(kernels, found, strict=True):
        assert_close(svd.s, jnp.linalg.svd(kernel)[1][INDEX], 1e-5)


def test_choices_are_checked():
    with pytest.raises(UserError, match=r"svd\.route 'gramm' is not known .*gram"):
        SvdConfig(route="gramm")
    assert SvdConfig().store == SvdStore(None) != SvdConfig(route="lapack").store


@pytest.mark.parametrize(
    ("backend", "route"), [("cpu", "gram"), ("gpu", "device"), ("tpu", "gram")]
)
def test_gpus_decompose_themselves_and_tpus_leave_it_to_their_hosts(backend, route, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert SvdConfig().store.route == route
