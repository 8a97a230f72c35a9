"""Scores of the paper, arXiv 2502.16894 v4: what its tables, ablations and appendix print.

Scores are in percent, except for the grades of chat (1 to 10) and the costs (GiB and hours). A row
is a label as `labels.read_label` reads it; a row of averages has them in the column "average".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Scores = Mapping[str, Mapping[str, float]]
AVERAGE = "average"
"""Column with the mean over the others."""


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

ABLATION_SCORES: Scores = _table("""
method                                          average
goat                                            81.49
goat:scale=alpha_over_rank                      80.35
goat:segments=principal                         81.11
goat:segments=principal,scale=alpha_over_rank   80.02
goat:segments=minor                             81.14
goat:segments=minor,scale=alpha_over_rank       80.03
goat:segments=random                            81.22
goat:segments=random,scale=alpha_over_rank      80.07
molora:scale=theory                             81.06
molora                                          80.26
pissa:segments=spaced,rho=10                    77.62
""")
"""CLIP ViT-B/32: segments O, P, M, R and a zero start, with the theory's scale and without, and a
single LoRA that starts from O."""

RATE_SCORES: Scores = _table("""
method     1e-5   2e-5   5e-5
molora     56.18  56.63  60.19
hydralora  55.19  57.39  60.96
goat       58.74  60.20  62.05
""")
"""LLaMA-2-7B at rank 8: GSM8K by learning rate."""

COST_SCORES: Scores = _table("""
method     memory  hours   math
full_moe   640     106.05  59.36
molora     34.85   36.93   56.63
hydralora  34.81   36.93   57.39
goat       34.85   36.98   60.20
""")
"""LLaMA-2-7B at rank 8 on an A100: memory, time of an epoch, GSM8K. The row of `full_moe` has lower
bounds, the time approximately."""

PLUS_SCORES: Scores = _table("""
method     generation  glue   images  commonsense
goat       30.60       89.76  81.49   82.64
goat_plus  30.54       89.61  81.54   82.41
""")
"""Averages of the four tables above; the paper's table 8 has 82.64 where its table 3 has 82.73."""

RANK_SCORES: Scores = _table("""
method        average
goat@32       83.04
molora@32     82.15
hydralora@32  82.12
""")

ROUTING_SCORES: Scores = _table("""
method                    average
goat                      81.49
goat:router=top_p,p=0.25  79.40
goat:router=top_k_shared  78.68
""")

BALANCE_SCORES: Scores = _table("""
method                       cars
goat:aux_weight=0.1          49.09
goat:aux_weight=0.01         50.52
goat                         53.50
goat:aux_weight=0.0001       51.53
goat:aux_weight=0            49.85
molora:aux_weight=0.1        49.02
molora:aux_weight=0.01       49.33
molora                       50.83
molora:aux_weight=0.0001     49.03
molora:aux_weight=0          48.02
hydralora:aux_weight=0.1     48.45
hydralora:aux_weight=0.01    49.45
hydralora                    48.42
hydralora:aux_weight=0.0001  48.52
hydralora:aux_weight=0       49.06
""")
"""Cars by the balance loss's coefficient, 0.001 if none is given."""

LOAD_SCORES: Scores = _table("""
method             1      2      3      4      5      6      7      8
goat:aux_weight=0  10.43  13.79  12.75  10.94  12.07  14.05  12.59  13.38
""")
"""Cars without balance loss: each expert's share of the tokens."""
