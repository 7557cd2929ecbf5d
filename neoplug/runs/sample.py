"""A sample of the student's output: the beginning of a held-out document, and its greedy continuation."""

from typing import Any

import torch

from neoplug.models.language_model import LanguageModel
from neoplug.models.quiet import quiet, quiet_peft
from neoplug.models.stored_adapter import virtual_tokens
from neoplug.runs.inputs import RunInputs


def sample_prompt(inputs: RunInputs, tokens: int = 32) -> list[int]:
    """Return the beginning of the first held-out document: up to its first answer token, or at most `tokens` tokens."""
    document = inputs.corpus.held_out[0]
    scored = document.loss_mask.nonzero()[0]
    start = int(scored[0]) if len(scored) and scored[0] > 1 else min(tokens, max(1, len(document) // 2))
    return [int(token) for token in document.input_ids[:start]]


def continuation(student: LanguageModel, prompt: list[int], tokenizer: Any, tokens: int = 32) -> str | None:
    """Return the student's greedy continuation of a prompt as text; None where the model cannot generate.

    Virtual tokens are processed again for each token: with a cache of transformers, peft computes them wrongly.
    """
    module: Any = student.module
    if not hasattr(module, "generate"):
        return None
    training = module.training
    module.eval()
    ids = torch.tensor([prompt], device=student.device)
    with torch.no_grad(), student.autocast_context(), quiet(), quiet_peft():
        found = module.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            use_cache=not virtual_tokens(module), pad_token_id=student.pad_token_id,
        )  # fmt: skip
    module.train(training)
    return str(tokenizer.decode(found[0, len(prompt) :].tolist(), skip_special_tokens=True))
