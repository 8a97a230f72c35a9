"""Scores published in the paper.

Source: "Make LoRA Great Again", arXiv 2502.16894 v4, the tables of image classification (CLIP
ViT-B/32, total rank 8), of GLUE (RoBERTa-large, total rank 32), of commonsense reasoning and of
generation (LLaMA-2-7B, total ranks 32 and 8). Scores are in percent, except for the grades of chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Scores = Mapping[str, Mapping[str, float]]


def _table(text: str) -> Scores:
    """Parses a table with a header of tasks and rows of a method and its numbers.

    Returns:
        method -> task -> score, read-only.
    """
    head, *lines = (line.split() for line in text.strip().splitlines())
    return MappingProxyType(
        {
            name: MappingProxyType(dict(zip(head[1:], map(float, values), strict=True)))
            for name, *values in lines
        }
    )


VISION_SCORES: Scores = _table("""
method     cars   dtd    eurosat gtsrb  resisc45 sun397 svhn
full       60.33  73.88  98.96   98.30  93.65    53.84  96.78
full_moe   66.39  75.53  98.59   98.50  94.38    60.34  97.09
lora       41.02  70.15  98.66   96.51  90.38    47.51  95.39
lora@16    46.51  72.07  98.74   98.04  92.08    51.63  96.00
lora@32    50.13  72.87  98.88   98.13  92.87    53.65  96.55
dora       40.75  71.91  98.89   97.71  90.19    47.54  95.46
pissa      40.41  69.62  98.48   95.84  90.58    47.21  95.84
milora     39.77  70.48  98.19   97.52  89.92    45.38  95.49
molora     50.83  73.51  98.63   97.72  92.58    52.55  96.00
adamole    49.47  71.65  98.52   97.73  91.95    52.29  95.82
hydralora  48.42  72.18  98.40   97.28  92.93    51.80  96.06
goat       53.50  75.32  98.82   98.17  93.46    54.53  96.62
""")
"""Method (with its rank, if it differs from the table's) -> task -> accuracy."""

GLUE_SCORES: Scores = _table("""
method     cola   sst2   mrpc   qqp    mnli   qnli   rte
full       84.27  95.98  85.29  91.58  89.83  94.49  84.84
full_moe   86.02  96.22  85.05  92.20  90.20  95.10  84.48
lora       83.41  95.64  83.33  90.06  89.00  93.28  84.47
dora       85.33  95.99  84.07  91.24  89.52  93.54  84.48
pissa      69.12  95.98  82.84  91.24  88.94  93.59  73.29
milora     84.65  96.10  86.02  91.33  89.51  94.12  84.83
rslora     83.51  95.98  86.02  90.75  88.97  93.84  84.12
molora     83.94  96.10  87.75  91.45  89.36  93.90  84.11
adamole    83.99  95.76  86.03  91.48  89.21  93.64  83.75
hydralora  83.89  95.52  85.04  91.02  89.34  93.87  81.22
goat       86.86  96.21  84.55  91.40  89.55  94.19  85.56
""")

COMMONSENSE_SCORES: Scores = _table("""
method     boolq  piqa   siqa   hellaswag winogrande arc_easy arc_challenge obqa
lora       69.80  79.90  79.50  83.60     82.60      79.80    64.70         81.00
dora       71.80  83.10  79.90  89.10     83.00      84.50    71.00         81.20
pissa      67.60  78.10  78.40  76.60     78.00      75.80    60.20         75.60
milora     67.60  83.80  80.10  88.20     82.00      82.80    68.80         80.60
lora_dash  71.00  75.70  79.30  91.10     78.60      84.20    69.80         78.80
neat       71.70  83.90  80.20  88.90     84.30      86.30    71.40         83.00
kasa       73.60  84.40  80.20  91.50     84.50      84.70    72.10         81.20
molora     73.15  83.68  80.09  74.57     85.95      87.33    72.53         86.20
hydralora  72.78  84.06  79.68  80.34     86.66      87.12    72.35         86.00
goat       73.60  83.95  80.50  87.12     85.00      87.79    76.88         87.00
""")
"""LLaMA-2-7B at rank 32; the first seven rows are quoted in the paper from other papers."""

GENERATION_SCORES: Scores = _table("""
method     chat   math   code
full       5.56   59.36  35.31
lora       5.61   52.84  21.34
dora       5.97   54.59  19.75
pissa      5.30   55.42  19.52
milora     5.23   54.44  19.51
molora     5.84   56.63  24.83
hydralora  5.82   57.39  24.21
goat       6.01   60.20  25.61
""")
"""LLaMA-2-7B at rank 8: MT-Bench (grade of the first turn), GSM8K and HumanEval (percent)."""
