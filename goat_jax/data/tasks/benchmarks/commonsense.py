r"""Commonsense reasoning: eight multiple-choice sets, and Commonsense170K to train for all eight.

The rows are in the format of LLM-Adapters (Hu et al. 2023, arXiv 2304.01933): columns instruction,
input (empty), output and answer. A row of ARC-Easy:

    instruction: "Please choose the correct answer to the question: Which statement best explains
        why photosynthesis is the foundation of most food webs?

        Answer1: Sunlight is the source of energy for nearly all ecosystems. Answer2: Most
        ecosystems are found on land instead of in water. Answer3: Carbon dioxide is more available
        than other gases. Answer4: The producers in all ecosystems are plants.

        Answer format: answer1/answer2/answer3/answer4"
    output: "the correct answer is answer1"
    answer: "answer1"

Rows in the sets' original format, as in tensorflow_datasets and on the hub, are converted to it
(`goat_jax.data.tasks.formats.commonsense`).
"""

from typing import Any

from goat_jax.data.sources.eval_files import has_split
from goat_jax.data.sources.formats import find_split
from goat_jax.data.sources.read import OR
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.prompts import END_OF_ANSWER, instruction
from goat_jax.errors import UserError, nearest
from goat_jax.files import user_path

FOLDERS: dict[str, tuple[str, ...]] = {
    "boolq": ("boolq",),
    "piqa": ("piqa",),
    "siqa": ("social_i_qa", "siqa"),
    "hellaswag": ("hellaswag",),
    "winogrande": ("winogrande",),
    "arc_easy": ("ARC-Easy", "arc_easy"),
    "arc_challenge": ("ARC-Challenge", "arc_challenge"),
    "obqa": ("openbookqa", "obqa"),
}
"""Task -> the names its folder may have, LLM-Adapters' first. The order is the paper's."""

PUBLISHED: dict[str, tuple[str, str, str, str]] = {
    "boolq": ("bool_q", "google/boolq", "train", "validation"),
    "piqa": ("piqa", "ybisk/piqa", "train", "validation"),
    "siqa": ("social_i_qa", "allenai/social_i_qa", "train", "validation"),
    "hellaswag": ("hellaswag", "Rowan/hellaswag", "train", "validation"),
    "winogrande": ("winogrande", "allenai/winogrande/winogrande_xl", "train_xl", "validation"),
    "arc_easy": ("ai2_arc/ARC-Easy", "allenai/ai2_arc/ARC-Easy", "train", "test"),
    "arc_challenge": ("ai2_arc/ARC-Challenge", "allenai/ai2_arc/ARC-Challenge", "train", "test"),
    "obqa": ("openbookqa", "allenai/openbookqa/main", "train", "test"),
}
"""Task -> its names in TFDS and on the hub, TFDS's training split, and the split of its questions:
the labeled validation set if the test set has no labels, as in LLM-Adapters."""

JOINT = "commonsense170k"
JOINT_FILES = ("commonsense_170k", "commonsense170k")
HELD_OUT = 120
"""Rows of Commonsense170K held out as a validation set during training, as in LLM-Adapters."""


def commonsense(name: str, folder: str | None = None, *, cloze: bool = False, **options: Any):
    """Makes one of the eight tasks, trained on that task's rows.

    Args:
      name: a key of `FOLDERS`.
      folder: the folder with NAME/train.* and NAME/test.* (LLM-Adapters' dataset folder); None:
        TFDS, or else the hub.
      cloze: whether to ask the bare question and compare the likelihoods of the options' texts, for
        models that are not trained to answer with labels.
      options: other fields of `EvalTask`.

    >>> commonsense("arc_easy").questions
    {'arc_easy': 'tfds:ai2_arc/ARC-Easy@test || hf:allenai/ai2_arc/ARC-Easy@test'}
    """
    if name not in FOLDERS:
        known = ", ".join(FOLDERS)
        raise UserError(f"unknown commonsense task {name!r}{nearest(name, FOLDERS)}: {known}")
    train, test = _sources(name, folder)
    form = CLOZE if cloze else {}
    settings = PLAIN | {"evaluation": test, "questions": {name: test}} | form | options
    return EvalTask(name, train, **settings)


def commonsense170k(folder: str | None = None, *, cloze: bool = False, **options: Any) -> EvalTask:
    """Makes the Commonsense170K task: trained on all eight sets together, evaluated on each.

    Args:
      folder: the folder with commonsense_170k.json (or .jsonl ...), either directly or in
        ft-training_set/, and with the folders of the tasks to evaluate.
      cloze: whether to compare the options' likelihoods, as for `commonsense`.
      options: other fields of `EvalTask`.

    >>> commonsense170k("nowhere")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere: no test file of any of boolq, piqa, social_i_qa, \
hellaswag, winogrande, ARC-Easy, ARC-Challenge, openbookqa
    """
    if folder is None:
        raise UserError(
            f"task {JOINT} needs folder=..., a folder that contains {JOINT_FILES[0]}.json"
        )
    root = user_path(folder)
    questions = {
        name: find_split(folders, "test")
        for name, parts in FOLDERS.items()
        if (folders := [root / part for part in parts if has_split(root / part, "test")])
    }
    if not questions:
        known = ", ".join(parts[0] for parts in FOLDERS.values())
        raise UserError(f"{folder}: no test file of any of {known}")
    places = [root, root / "ft-training_set"]
    train = next(
        (
            find_split(places, file)
            for file in JOINT_FILES
            if any(has_split(p, file) for p in places)
        ),
        str(root / f"{JOINT_FILES[0]}.json"),
    )
    form = CLOZE if cloze else {}
    settings = PLAIN | {"evaluation": train, "held_out": HELD_OUT, "questions": questions}
    return EvalTask(JOINT, train, **(settings | form | options))


PLAIN: dict[str, Any] = {
    "format": "template",
    "prompt": instruction("{instruction}"),
    "completion": "{output}",
    "selection": "instructions",
    "eval": "choice",
    "continuation": "the correct answer is {label}",
    "max_new_tokens": 32,
    "stop": END_OF_ANSWER,
}
"""Prompt and answer format of the paper's runs."""

CLOZE: dict[str, Any] = {
    "prompt": "Question: {stem}\nAnswer:",
    "completion": " {text}",
    "selection": "options",
    "continuation": " {option}",
    "scoring": "likelihood",
}
"""Cloze format: the bare question, answered by the text of an option."""


def _sources(name: str, folder: str | None) -> tuple[str, str]:
    """Returns the sources of training rows, which need not exist, and questions, which must."""
    if folder is None:
        tfds, hub, train, test = PUBLISHED[name]
        split = train.partition("_")[0]  # on the hub the size is part of the name
        return f"tfds:{tfds}@{train}{OR}hf:{hub}@{split}", f"tfds:{tfds}@{test}{OR}hf:{hub}@{test}"
    roots = [user_path(folder) / part for part in FOLDERS[name]]
    # Some sets come without training rows but can still be evaluated.
    train = next((find_split([r], "train") for r in roots if has_split(r, "train")), None)
    return train or str(roots[0] / "train.jsonl"), find_split(roots, "test")
