"""Source strings and TFDS: a data set of our own is written as array_record and read by name."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from goat_jax.data.sources.read import SCHEMES, read_source, read_tfds
from goat_jax.errors import UserError


class NoTensorFlow:
    """An import hook that hides TensorFlow where it is installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> str:
    """A folder with the data set `tiny_tone`, prepared without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyTone(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "sentence": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["negative", "positive"]),
                    "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(5), "validation": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"sentence": f"row {i} é", "label": i % 2, "vector": [i, 1]}

    folder = str(tmp_path_factory.mktemp("tfds"))
    tfds.disable_progress_bar()
    TinyTone(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_rows_are_plain_and_need_no_tensorflow(prepared, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [NoTensorFlow, *sys.meta_path])
    rows = sorted(read_tfds("tiny_tone", "train", prepared), key=lambda row: row["sentence"])
    assert [row["sentence"] for row in rows] == [f"row {i} é" for i in range(5)]
    assert [row["label"] for row in rows] == [0, 1, 0, 1, 0]
    assert type(rows[0]["label"]) is int
    np.testing.assert_array_equal(rows[3]["vector"], [3.0, 1.0])


def test_tfds_source_string(prepared):
    assert len(read_source("tfds:tiny_tone", "validation", prepared)) == 2
    assert len(read_source("tfds:tiny_tone@train", "validation", prepared)) == 5
    assert len(read_source("tfds:tiny_tone:1.0.0@train[:2]", "validation", prepared)) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:tiny_ton", r"tfds:tiny_ton@train: Dataset tiny_ton not found\."),
        ("tfds:tiny_tone@dev", "Unknown split 'dev'"),
        ("tfds:tiny_tone:9.9.9", "tfds:tiny_tone:9.9.9@train: "),
    ],
)
def test_tfds_errors_are_one_line(prepared, source, message):
    with pytest.raises(UserError, match=message) as caught:
        read_source(source, "train", prepared)
    assert "\n" not in str(caught.value)


def test_glue_of_tfds_is_registered_though_it_is_an_old_module(tmp_path):
    # Known but not prepared here: the complaint is about the data, not about the name.
    with pytest.raises(UserError) as caught:
        read_tfds("glue/rte", "train", str(tmp_path), download=False)
    assert "not found." not in str(caught.value)


def test_paths(tmp_path):
    (tmp_path / "a.csv").write_text("a\n1\n")
    assert read_source("a.csv", "train", str(tmp_path)) == [{"a": "1"}]
    assert read_source(str(tmp_path / "a.csv"), "train", "/elsewhere") == [{"a": "1"}]
    assert set(SCHEMES) == {"tfds", "reviews", "digits", "idx", "hf"}


@pytest.mark.slow
def test_importing_the_tasks_is_light():
    # Not jax: the package's own front page brings it.
    heavy = {"transformers", "tensorflow_datasets", "grain", "orbax", "pyarrow", "tensorflow"}
    code = (
        "import sys, goat_jax.data.tasks.registry\n"
        "import goat_jax.data.pipeline.loader, goat_jax.data.pipeline.tokenize\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert importlib.util.find_spec("transformers")  # it could have been imported
