"""goat-jax plot on a trained run: the numbers behind the pictures, the files, the page."""

import re
import struct
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.analysis.run_data import (
    batch_of_text,
    router_entropies,
    routes,
    spectra,
    update_norms,
)
from goat_jax.cli.main import main
from goat_jax.cli.verbs.plot import OF_CHECKPOINT, OF_RECORDS
from goat_jax.nn.dense import Adapter, merge_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.data import evaluation_batches, load_rows
from kinds import expect

pytestmark = pytest.mark.slow  # a trained run, and all pictures of it


@pytest.fixture(scope="module")
def opened(finished):
    _config, summary = finished
    return restore_run(summary.folder, None, factors=True)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(finished):
    folder = finished[1].folder
    assert main(["plot", str(folder), "--text", "the film is lovely and dull"]) == 0
    return folder, (folder / "report.html").read_text(encoding="utf-8")


def test_every_picture_is_a_file_and_on_the_page(page):
    folder, text = page
    found = Page(text)
    names = [picture.name for picture in (*OF_RECORDS, *OF_CHECKPOINT)]
    assert {path.stem for path in (folder / "plots").glob("*.png")} == set(names)
    assert len(found.images) == len(names) and found.tags.count("section") == len(names)
    assert not found.open and "Not drawn" not in text
    for path in (folder / "plots").glob("*.png"):
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width > 500 and height > 150


def test_the_page_needs_no_network(page):
    _, text = page
    bare = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|<script|<link|url\(|@import", bare)
    assert all(src == "" for src in re.findall(r'src="([^"]*)"', bare))


def test_weights_of_tokens_agree_with_the_load(opened):
    batch, tokens = batch_of_text(opened, "the film is lovely and dull", 0)
    assert tokens == ["[CLS]", "the", "film", "is", "lovely", "and", "dull", "[SEP]"]
    found = routes(opened, batch, tokens)
    spec = opened.config.adapter.spec()
    assert len(found.weights) == 2 and found.image is None
    for weights in found.weights.values():
        assert weights.shape == (2, 8, spec.num_experts)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        assert ((weights > 0).sum(-1) == spec.top_k).all()


def test_the_evaluation_row_is_shown_without_its_padding(opened):
    batch, tokens = batch_of_text(opened, None, 3)
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and "[PAD]" not in tokens
    assert next(iter(routes(opened, batch, tokens).weights.values())).shape[1] == len(tokens)


def test_entropies_lie_between_none_and_even(opened):
    batches = evaluation_batches(opened.config, load_rows(opened.config, "evaluation")[0])
    for values in router_entropies(opened, batches).values():
        assert values.shape == (2,) and (values > 0).all() and (values <= np.log(8) + 1e-6).all()


def products(model):
    found = {}
    for site in find_modules(model):
        adapter = site.module.adapter
        if adapter is not None:
            a, b = (adapter.factors()[name] for name in "ab")
            scaled = adapter.scale[...][..., None, None] * jnp.matmul(a, b)
            found[site.pattern] = np.asarray(scaled, np.float64)
    return found


def test_update_norms_are_those_of_the_products(opened):
    now = products(merge_model(opened.setup.graph, opened.state.trainable, opened.setup.base))
    graph, start = opened.setup.graph, opened.setup.state.trainable
    before = products(merge_model(graph, start, opened.setup.base))
    found = update_norms(opened)
    assert set(found) == set(now)
    for name, norms in found.items():
        expected = np.sqrt(np.square(now[name] - before[name]).sum((-2, -1)))
        np.testing.assert_allclose(norms, expected, rtol=1e-4, atol=1e-6)
        assert (norms > 0).any()


def test_segments_are_those_the_experts_started_from(opened):
    start = opened.setup.state.trainable
    model = merge_model(opened.setup.graph, start, opened.setup.base)
    adapters = {site.pattern: site.module.adapter for site in find_modules(model)}
    rho = opened.config.adapter.spec().initializer.rho
    for name, (values, index) in spectra(opened).items():
        adapter = expect(Adapter, adapters[name])
        a, scale = np.asarray(adapter.factors()["a"])[1], np.asarray(adapter.scale[...])[1]
        sigma = np.square(a).sum(1) * scale[:, None] * rho  # |a|^2 = sigma / (s rho)
        np.testing.assert_allclose(sigma, values[index], rtol=1e-3)


def test_what_a_run_does_not_have_is_said(page, capsys):
    folder, _ = page
    assert main(["plot", str(folder), "--records-only"]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(Page(text).images) == len(OF_RECORDS)
    assert main(["plot", str(folder), "--image", "a.png"]) == 2
    assert "reads texts" in capsys.readouterr().err
    assert main(["plot", str(folder), "--row", "999"]) == 2
    assert "rows 0 to 39" in capsys.readouterr().err
