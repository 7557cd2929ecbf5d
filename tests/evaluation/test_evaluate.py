"""What probes are given to measure with, against the model's own logits."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neoplug import hookimpl
from neoplug.data.batch import Document, collate
from neoplug.errors import RunError
from neoplug.evaluation.probes import probe
from neoplug.models.verify import head_name, language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins

SHARED = 300


@dataclass(eq=False)
class Scores:
    copying: bool

    @hookimpl
    def on_evaluate(self, model, batches, predict):
        texts = [replace(batch) if self.copying else batch for batch in batches]
        return {"found": torch.cat([log_q for text in texts for log_q, _ in predict(model, text)]).tolist()}


def test_a_prompt_of_the_run_may_hold_tokens_that_its_reader_alone_knows(tiny_student):
    model = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    whole = language_model(model, head_name(model), Vocabulary(SHARED))
    ids = np.array([SHARED + 7, 5, 6, 7])
    batches = [collate([Document(ids, np.array([False, False, True, True]), 0)])]

    def found(copying):
        return probe(Plugins({"probes": {"s": Scores(copying)}}), whole, None, batches, tokenizer)["s"]["found"]

    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, 1:3, :SHARED]
    torch.testing.assert_close(torch.tensor(found(copying=False)), logits.log_softmax(-1), rtol=0, atol=1e-5)
    with pytest.raises(RunError, match="do not share, as "):  # a probe's own text nobody looked at before
        found(copying=True)
