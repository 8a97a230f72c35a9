"""Recipes of the GLUE data sets; TFDS's GLUE builder reads their files, without TensorFlow."""

from __future__ import annotations

from goat_jax.data.prepare.fetch import RemoteFile
from goat_jax.data.prepare.recipe import Recipe

_GLUE = "https://dl.fbaipublicfiles.com/glue/data"
_MRPC = "https://dl.fbaipublicfiles.com/senteval/senteval_data"
_DEV_IDS = (
    "https://firebasestorage.googleapis.com/v0/b/mtl-sentence-representations.appspot.com/o/"
    "data%2Fmrpc_dev_ids.tsv?alt=media&token=ec5c0836-31d5-48f4-b431-7480817f1adc"
)


def _one_zip(task: str, filename: str, size: int, digest: str, licence: str) -> Recipe:
    remote = RemoteFile(filename, f"{_GLUE}/{filename}", f"sha256:{digest}", size)
    return Recipe(f"glue/{task}", None, (remote,), licence)


GLUE_RECIPES: dict[str, Recipe] = {
    "cola": _one_zip(
        "cola",
        "CoLA.zip",
        376971,
        "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
        "Warstadt et al. 2019: excerpts of published works, under fair use for research",
    ),
    "sst2": _one_zip(
        "sst2",
        "SST-2.zip",
        7439277,
        "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
        "Socher et al. 2013: no licence text, for research",
    ),
    "mrpc": Recipe(
        "glue/mrpc",
        None,
        (
            RemoteFile(
                "msr_paraphrase_train.txt",
                f"{_MRPC}/msr_paraphrase_train.txt",
                "sha256:60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
                1047044,
            ),
            RemoteFile(
                "msr_paraphrase_test.txt",
                f"{_MRPC}/msr_paraphrase_test.txt",
                "sha256:a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
                441275,
            ),
            RemoteFile(
                "mrpc_dev_ids.tsv",
                _DEV_IDS,
                "sha256:971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
                6222,
            ),
        ),
        "Dolan and Brockett 2005: Microsoft Research data license, for research only",
    ),
    "qqp": _one_zip(
        "qqp",
        "QQP.zip",
        41696084,
        "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
        "Quora: its terms of service, for non-commercial use only",
    ),
    "stsb": _one_zip(
        "stsb",
        "STS-B.zip",
        802872,
        "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
        "Cer et al. 2017: several sources, mostly CC BY-SA 4.0",
    ),
    "mnli": _one_zip(
        "mnli",
        "MNLI.zip",
        312783507,
        "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
        "Williams et al. 2018: OANC's licence, a part CC BY-SA 3.0 and CC BY 3.0",
    ),
    "qnli": _one_zip(
        "qnli",
        "QNLIv2.zip",
        10627589,
        "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
        "Rajpurkar et al. 2016 (SQuAD): CC BY-SA 4.0",
    ),
    "rte": _one_zip(
        "rte",
        "RTE.zip",
        697150,
        "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee",
        "Dagan et al. 2006 and later: no licence text, for research",
    ),
}
"""Name of a task -> its recipe. Addresses, sizes and checksums are those that TFDS pins."""
