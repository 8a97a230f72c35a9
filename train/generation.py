"""The paper's table of generation: chat, mathematics and code; every method and published score.

    python train/generation.py --runs math --options folder=data/MetaMathQA --model.path LLAMA
    python train/generation.py --runs code --options folder=data/CodeFeedback --run-programs
    python train/generation.py --run-programs --judge https://HOST/v1 --judge-model NAME \\
        --options math:folder=MetaMathQA code:folder=CodeFeedback chat:folder=WizardLM
    python train/generation.py --runs math --methods goat goat@16 goat:scale=alpha_over_rank

An interrupted run continues where it stopped, and finished runs are not repeated. The table is also
written to runs/generation/table.md. The chat score is the judge's grade of the first turn, from 1
to 10.
"""

import sys
from pathlib import Path

from reproduction.eval_tables import EvalSweep, RunKind, main
from reproduction.published_scores import GENERATION_SCORES

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SWEEP = EvalSweep(
    {
        "chat": RunKind(CONFIGS / "chat.py", {"chat": "score/turn_1"}, factor=1.0),
        "math": RunKind(CONFIGS / "math.py", {"math": "accuracy_strict"}),
        "code": RunKind(CONFIGS / "code.py", {"code": "pass@1"}),
    },
    GENERATION_SCORES,
    "generation",
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
