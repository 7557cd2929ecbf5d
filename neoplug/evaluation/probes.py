"""Running of probes: plugins that evaluate a model, for which they can request log-probabilities and hidden states.

N answer tokens of a batch, t of a tile; V shared vocabulary, H hidden size.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neoplug.data.batch import Batch
from neoplug.errors import RunError
from neoplug.models.language_model import LanguageModel
from neoplug.registry import Plugins
from neoplug.training.objective import log_probabilities


@torch.no_grad()
def probe(
    plugins: Plugins, model: LanguageModel, teacher: LanguageModel | None, batches: Sequence[Batch], tokenizer: Any
) -> dict[str, Any]:
    """Return the results of all probes by name.

    With several ranks, every rank runs every probe on all of the held-out text, since results of probes in general
    cannot be combined. The results that a run stores are those of the main process.

    model    the model to evaluate
    teacher  the teacher's model, which probes may run as well; None where there is none
    batches  the held-out text, as `model` reads it

    Raises:
        RunError: a probe's own text has tokens that teacher and student do not share.
    """
    models = {id(each.module): each for each in (model, teacher) if each is not None}
    held_out = set(map(id, batches))

    def reading(module: nn.Module, batch: Batch) -> tuple[LanguageModel, Batch]:
        """Return the model of `module`, and the batch as this model reads it."""
        reader = models[id(module)]
        if id(batch) not in held_out:  # held-out text is validated, but for prompts that one model reads
            _validate_shared_vocabulary(batch, reader, tokenizer)
        return reader, (batch.for_teacher() if reader is teacher else batch).to(reader.device)

    def predict(module: nn.Module, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield log-probabilities [t, V] of `module` and the answer tokens [t] as their columns."""
        predicting, batch = reading(module, batch)
        labels = predicting.head.vocabulary.index(batch.labels)
        for rows, log_q, _ in log_probabilities(predicting.head, predicting.hidden(batch)):
            yield log_q, labels[rows]

    def states(module: nn.Module, batch: Batch, layers: Iterable[int]) -> dict[int, Tensor]:
        """Return the hidden states [N, H] of layers of `module`, in float32."""
        reader, batch = reading(module, batch)
        return {layer: recorded.float() for layer, recorded in reader.states(batch, layers).items()}

    training = model.module.training
    model.module.eval()
    teachers_module = None if teacher is None else teacher.module
    answers = plugins.each(
        "on_evaluate", model=model.module, teacher=teachers_module, batches=batches, predict=predict,
        tokenizer=tokenizer, states=states,
    )  # fmt: skip
    model.module.train(training)
    return answers


def _validate_shared_vocabulary(batch: Batch, model: LanguageModel, tokenizer: Any) -> None:
    """Raise RunError where a probe's own text has tokens that only one of the models has."""
    if unshared := model.head.vocabulary.unshared(batch.input_ids):
        named = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in unshared[:5])
        raise RunError(
            f"a probe's text has {len(unshared)} tokens that teacher and student do not share, as {named}\n"
            "why: probabilities are compared over the tokens of both vocabularies\n"
            "fix: leave such text out of the probe"
        )
