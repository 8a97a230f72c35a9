"""The prompt of the paper's language tasks, for training and for questions alike."""

INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{asked}\n\n### Response:\n"
)
"""The form Alpaca made common; LLM-Adapters and the published runs use it (LLM-Adapters with 16
spaces before each line, which are not repeated here)."""

NEXT_TURN = "\n\n### Instruction:\n{asked}\n\n### Response:\n"
"""How a conversation goes on in that form."""

CODE_REQUEST = (
    "Complete this Python function. Answer with the whole function.\n\n```python\n{prompt}```"
)
"""How a model that follows instructions is asked for the rest of a program."""

END_OF_ANSWER = ("### Instruction", "### Response")
"""What a model says that does not stop after its answer."""


def instruction(asked: str) -> str:
    """The prompt template around another, usually one column.

    >>> instruction("{question}").splitlines()[3]
    '{question}'
    """
    return INSTRUCTION.replace("{asked}", asked)
