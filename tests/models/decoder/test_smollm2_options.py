"""SmolLM2's choice among the options of ARC-Easy and OpenBookQA, against torch's own reckoning."""

import jax
import numpy as np
import pytest
import torch
import transformers

from goat_jax.data.tasks.evaluation import load_questions
from goat_jax.errors import UserError
from goat_jax.evaluation.generate_and_loglikelihood import score_by_likelihood
from goat_jax.evaluation.model import load_eval_model
from goat_jax.evaluation.types import PREDICTIONS, EvalOptions, EvalRequest
from goat_jax.pretrained.packaged_models import smollm2_file
from goat_jax.pretrained.resolve import open_checkpoint
from kinds import eval_task

# Minutes of a real model; CI compares those of made ones.
pytestmark = pytest.mark.nightly

ROWS = 40
"""200 of each set took ten minutes on two cores, with the same result."""
NEAR = 2e-3
"""Nats between two options below which float32 may order them either way."""


@pytest.fixture(scope="module")
def theirs():
    """torch's model with the very same dequantised weights."""
    try:
        path = smollm2_file()
    except UserError as error:
        pytest.skip(f"the package of SmolLM2 is out of reach: {error}")
    settings, weights = open_checkpoint(path)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    tensors = {name: torch.from_numpy(weights[name]) for name in weights}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return model


@pytest.fixture(scope="module")
def model(theirs):
    return load_eval_model("package:smollm2")


def torch_sums(model, tokenizer, prompt, options):
    """Log-probability of each option: its tokens read after the prompt's, one option at a time.

    The prompt's keys and values are reckoned once; nothing is padded, nothing batched. The cache is
    given by its place: transformers renamed that argument in version 5.
    """
    past = transformers.DynamicCache()
    start = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        read = model(start, None, None, past)
        sums, lengths = [], []
        for option in options:
            ids = tokenizer(option, add_special_tokens=False)["input_ids"]
            told = read.logits[0, -1:]
            if len(ids) > 1:
                after = model(torch.tensor([ids[:-1]]), None, None, past)
                told = torch.cat([told, after.logits[0]])
                past.crop(1 - len(ids))  # as before: only the prompt
            logs = torch.log_softmax(told.double(), dim=-1)
            sums.append(float(logs[torch.arange(len(ids)), torch.tensor(ids)].sum()))
            lengths.append(len(ids))
    return np.array(sums), np.array(lengths)


@pytest.mark.parametrize("name", ["obqa", "arc_easy"])
def test_the_same_options_are_chosen(shared, theirs, model, name):
    folder = str(shared / "data" / "commonsense")
    task = eval_task(name, folder=folder, cloze=True, question_limit=ROWS)
    questions = load_questions(task)
    with jax.default_matmul_precision("highest"):
        found = score_by_likelihood(EvalRequest(model, task, questions, EvalOptions(batch_size=32)))
    records = found.records[PREDICTIONS]
    assert len(records) == ROWS
    right = []
    for question, record in zip(questions, records, strict=True):
        sums, lengths = torch_sums(theirs, model.tokenizer, question.prompt, question.continuations)
        ours = np.array(list(record["log_likelihoods"].values()))
        np.testing.assert_allclose(ours, sums, rtol=0, atol=NEAR)
        assert record["tokens"] == lengths.tolist()
        assert record["prediction"] == question.labels[int(sums.argmax())]
        assert record["prediction_norm"] == question.labels[int((sums / lengths).argmax())]
        right.append(question.labels[int(sums.argmax())] == question.answer)
    assert found.scores["accuracy"] == pytest.approx(np.mean(right))
    assert found.scores["accuracy"] > {"arc_easy": 0.35, "obqa": 0.15}[name]  # chance is 0.25
