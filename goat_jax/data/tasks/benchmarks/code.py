r'''Code tasks: training on CodeFeedback, evaluation on HumanEval by running its tests.

A row of HumanEval (Chen et al., arXiv 2107.03374), shortened:

    task_id: "HumanEval/0"
    prompt: "from typing import List\n\n\ndef has_close_elements(numbers: List[float], threshold:
        float) -> bool:\n    """ Check if in given list of numbers, are any two numbers closer to
        each other than\n    given threshold. ..."""\n"
    entry_point: "has_close_elements"
    canonical_solution: "    for idx, elem in enumerate(numbers):\n ..."
    test: "def check(candidate):\n    assert candidate([1.0, 2.0, 3.9, 4.0], 0.3) == True ..."

CodeFeedback-Filtered-Instruction (Zheng et al., arXiv 2402.14658) has the columns query and answer.
'''

from typing import Any

from goat_jax.data.sources.eval_files import first_file, question_source
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.prompts import END_OF_ANSWER, instruction

CODEFEEDBACK_FILES = ("CodeFeedback-Filtered-Instruction", "codefeedback", "train")
CODEFEEDBACK_ROWS = 100_000


def codefeedback(folder: str, questions: str, **options: Any) -> EvalTask:
    """Makes the paper's code task: 100,000 rows of CodeFeedback with code, scored on HumanEval.

    The rows are evenly spaced over the file; the reference code takes the first rows of the file.

    Args:
      folder: the folder with CodeFeedback-Filtered-Instruction.jsonl (or codefeedback.*, train.*).
      questions: HumanEval's file, or a folder with test.*.
      options: other fields of `EvalTask`.

    >>> codefeedback("nowhere", "nowhere")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere has none of the files \
CodeFeedback-Filtered-Instruction, codefeedback, train
    """
    train = first_file(folder, *CODEFEEDBACK_FILES)
    settings: dict[str, Any] = {
        "evaluation": train,
        "held_out": 200,
        "train_limit": CODEFEEDBACK_ROWS,
        "selection": "first_code_block",
        "format": "template",
        "prompt": instruction("{query|asked}"),
        "completion": "{answer|canonical_solution}",
        "questions": {"humaneval": question_source(questions)},
        "eval": "program",
        "max_new_tokens": 512,
        "stop": END_OF_ANSWER,
    }
    return EvalTask("codefeedback", train, **(settings | options))


def humaneval(questions: str, **options: Any) -> EvalTask:
    """Makes the HumanEval task for base models: the unchanged prompt, without training rows.

    Args:
      questions: HumanEval's file, or a folder with test.*.
      options: other fields of `EvalTask`, including `train` and `evaluation`.

    >>> humaneval("nowhere.jsonl").prompt
    '{prompt}'
    """
    source = question_source(questions)
    settings: dict[str, Any] = {
        "train": source,
        "evaluation": source,
        "format": "template",
        "prompt": "{prompt}",
        "completion": "{canonical_solution}",
        "questions": {"humaneval": source},
        "eval": "program",
        "max_new_tokens": 384,
        "stop": ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert "),
    }
    return EvalTask("humaneval", **(settings | options))
