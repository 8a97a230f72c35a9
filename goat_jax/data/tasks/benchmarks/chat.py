"""Chat tasks: training on WizardLM, evaluation on MT-Bench by a judge's grades of both turns.

A row of MT-Bench (Zheng et al., arXiv 2306.05685), in FastChat's file question.jsonl:

    question_id: 81
    category: "writing"
    turns: ["Compose an engaging travel blog post about a recent trip to Hawaii, highlighting
        cultural experiences and must-see attractions.", "Rewrite your previous response. Start
        every sentence with the letter A."]

WizardLM's Evol-Instruct (Xu et al., arXiv 2304.12244) has the columns instruction and output.
"""

from typing import Any

from goat_jax.data.sources.eval_files import first_file, question_source
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.prompts import END_OF_ANSWER, instruction

WIZARD_FILES = ("WizardLM_evol_instruct_70k", "alpaca_evol_instruct_70k", "wizardlm", "train")
WIZARD_ROWS = 52_000


def wizardlm(folder: str, questions: str, **options: Any) -> EvalTask:
    """Makes the paper's chat task: 52,000 rows of WizardLM without refusals, scored on MT-Bench.

    Args:
      folder: the folder with WizardLM_evol_instruct_70k.json (or wizardlm.*, train.*).
      questions: MT-Bench's question.jsonl, or a folder with question.*.
      options: other fields of `EvalTask`.

    >>> wizardlm("nowhere", "nowhere")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere has none of the files WizardLM_evol_instruct_70k, \
alpaca_evol_instruct_70k, wizardlm, train
    """
    train = first_file(folder, *WIZARD_FILES)
    settings: dict[str, Any] = {
        "evaluation": train,
        "held_out": 200,
        "train_limit": WIZARD_ROWS,
        "selection": "no_refusals",
        "format": "template",
        "prompt": instruction("{instruction}"),
        "completion": "{output}",
        "questions": {"mt_bench": question_source(questions, split="question")},
        "eval": "conversation",
        "max_new_tokens": 1024,
        "stop": END_OF_ANSWER,
    }
    return EvalTask("wizardlm", train, **(settings | options))


def mt_bench(questions: str, **options: Any) -> EvalTask:
    """Makes the MT-Bench task: evaluation of any model, without training rows.

    Args:
      questions: MT-Bench's question.jsonl, or a folder with question.*.
      options: other fields of `EvalTask`. format=messages uses the model's chat template instead
        of the prompt that `wizardlm` trains with.

    >>> mt_bench("question.jsonl").scoring_methods
    ('judge', 'loss')
    """
    source = question_source(questions, split="question")
    settings: dict[str, Any] = {
        "train": source,
        "evaluation": source,
        "questions": {"mt_bench": source},
        "eval": "conversation",
        "max_new_tokens": 1024,
        "stop": END_OF_ANSWER,
    }
    if options.get("format", "template") == "template":
        settings |= {
            "format": "template",
            "prompt": instruction("{asked}"),
            "completion": "{turns}",
        }
    return EvalTask("mt_bench", **(settings | options))
