r"""Math tasks: training on MetaMathQA or GSM8K, evaluation on GSM8K by the final number.

A row of GSM8K (Cobbe et al., arXiv 2110.14168):

    question: "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and
        bakes muffins for her friends every day with four. She sells the remainder at the farmers'
        market daily for $2 per fresh duck egg. How much in dollars does she make every day at the
        farmers' market?"
    answer: "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 =
        $<<9*2=18>>18 every day at the farmer's market.\n#### 18"

MetaMathQA (Yu et al., arXiv 2309.12284) has the columns query, response and type; a response
ends in "#### 18\nThe answer is: 18".
"""

from typing import Any

from goat_jax.data.sources.eval_files import first_file, question_source
from goat_jax.data.sources.formats import split_files
from goat_jax.data.sources.read import OR
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.prompts import END_OF_ANSWER, instruction

PUBLISHED = tuple(
    f"tfds:gsm8k@{split}{OR}hf:openai/gsm8k/main@{split}" for split in ("train", "test")
)
METAMATH_FILES = ("MetaMathQA-395K", "metamathqa", "train")
METAMATH_ROWS = 100_000


def gsm8k(folder: str | None = None, **options: Any) -> EvalTask:
    """Makes the GSM8K task: grade-school math, trained on GSM8K's worked solutions.

    Args:
      folder: the folder with train.* and test.*; None: TFDS, or else the hub.
      options: other fields of `EvalTask`.

    >>> gsm8k().evaluation
    'tfds:gsm8k@test || hf:openai/gsm8k/main@test'
    """
    train, test = split_files(folder, "train", "test") if folder else PUBLISHED
    settings: dict[str, Any] = {
        "evaluation": test,
        "format": "template",
        "prompt": "Question: {question}\nAnswer:",
        "completion": " {answer}",
        "questions": {"gsm8k": test},
        "eval": "number",
        "max_new_tokens": 256,
        "stop": ("Question:",),
    }
    return EvalTask("gsm8k", train, **(settings | options))


def metamath(folder: str, questions: str | None = None, **options: Any) -> EvalTask:
    """Makes the paper's math task: 100,000 rows of MetaMathQA from GSM8K, evaluated on GSM8K.

    The rows are evenly spaced over the file. The reference code takes the first rows of the file,
    without those of 512 or more tokens.

    Args:
      folder: the folder with MetaMathQA-395K.json (the published file; or metamathqa.*, train.*).
      questions: GSM8K's test file, or a folder with test.*; None: TFDS, or else the hub.
      options: other fields of `EvalTask`.

    >>> metamath("nowhere")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere has none of the files MetaMathQA-395K, metamathqa, \
train
    """
    train = first_file(folder, *METAMATH_FILES)
    settings: dict[str, Any] = {
        "evaluation": train,
        "held_out": 200,
        "train_limit": METAMATH_ROWS,
        "selection": "grade_school",
        "format": "template",
        "prompt": instruction("{query|question}"),
        "completion": "{response|answer}",
        "questions": {"gsm8k": question_source(questions, PUBLISHED[1])},
        "eval": "number",
        "max_new_tokens": 512,
        "stop": END_OF_ANSWER,
    }
    return EvalTask("metamath", train, **(settings | options))


def metamathqa(folder: str, questions: str | None = None, **options: Any) -> EvalTask:
    """Makes the task of PEFT's method comparison: MetaMathQA, evaluated on GSM8K.

    Source: huggingface/peft, method_comparison/MetaMathQA. The loss is also measured on 50 of
    GSM8K's training rows.

    Args:
      folder: the folder with MetaMathQA-395K.json (the published file; or metamathqa.*, train.*).
      questions: a folder with GSM8K's train.* and test.*; None: TFDS, or else the hub.
      options: other fields of `EvalTask`.

    >>> metamathqa("nowhere")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere has none of the files MetaMathQA-395K, metamathqa, \
train
    """
    train = first_file(folder, *METAMATH_FILES)
    valid, test = split_files(questions, "train", "test") if questions else PUBLISHED
    settings: dict[str, Any] = {
        "evaluation": valid,
        "evaluation_limit": 50,
        "selection": "up_to_1300_characters",
        "format": "template",
        "prompt": "Question: {query|question} Think step by step.\nAnswer:",
        "completion": "{response|answer}",
        "loss_on": "all",
        "packing": False,
        "questions": {"gsm8k": test},
        "eval": "stated",
        "max_new_tokens": 300,
    }
    return EvalTask("metamathqa", train, **(settings | options))
