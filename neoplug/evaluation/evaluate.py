"""The fixed ruler: whatever a student trained on, it is measured at temperature 1 on held-out text.

N answer tokens, V shared vocabulary; p is the teacher's and q the student's probability. All values are means over
answer tokens, in nats where they have a unit.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neoplug.data.batch import Batch, Document, collate
from neoplug.errors import RunError
from neoplug.models.language_model import LanguageModel
from neoplug.registry import Plugins
from neoplug.teachers.base import Teacher
from neoplug.training.diagnostics import Diagnosis, means
from neoplug.training.objective import log_probabilities


def held_out_batches(documents: Sequence[Document], size: int, device: torch.device) -> list[Batch]:
    """Return batches of `size` documents on the device."""
    return [collate(documents[at : at + size]).to(device) for at in range(0, len(documents), size)]


@torch.no_grad()
def measure(
    student: LanguageModel, teacher: Teacher | None, batches: Sequence[Batch]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what is measured of the student and of the teacher.

    Both have cross_entropy, perplexity and entropy. Beside a teacher the student also has forward_kl, reverse_kl, jsd,
    top1_agreement, top10_mass_share and kd_ce_cosine (see `diagnosis.means`); without one the second is empty.
    """
    training = student.module.training
    student.module.eval()
    sums: dict[str, Tensor] = {}
    diagnosis = Diagnosis(student.device)
    for batch in batches:
        states, labels = student.hidden(batch), student.head.vocabulary.index(batch.labels)
        signal = None if teacher is None else teacher.signal(batch)
        for rows, log_q, log_p in log_probabilities(student.head, states, signal):
            diagnosis.see(log_q, log_p, labels[rows])
            if log_p is not None:
                _add(sums, _divergences(log_p, log_q))
    student.module.train(training)
    tokens = sum(batch.answer_tokens for batch in batches)
    divergences = {name: float(total) / max(tokens, 1) for name, total in sums.items()}
    return _told_apart(divergences | means(diagnosis.sums.tolist(), tokens))


def _add(sums: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name, value in found.items():
        total = value.double().sum()
        sums[name] = sums[name] + total if name in sums else total


def _divergences(log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
    """[n, V], [n, V] log-probabilities of teacher and student -> [n] each."""
    p, q, difference = log_p.exp(), log_q.exp(), log_p - log_q
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return {
        "forward_kl": (p * difference).sum(-1),
        "reverse_kl": -(q * difference).sum(-1),
        "jsd": (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2,
    }


def _told_apart(measured: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return what was measured of the student and of the teacher, each under the names of the ruler."""
    theirs = {name.removeprefix("teacher_"): value for name, value in measured.items() if name.startswith("teacher_")}
    ours = {name.removeprefix("student_"): value for name, value in measured.items() if name[:8] != "teacher_"}
    for of_one in filter(None, (ours, theirs)):
        of_one["perplexity"] = math.exp(min(of_one["cross_entropy"], 700.0))
    return ours, theirs


@torch.no_grad()
def probe(
    plugins: Plugins, model: LanguageModel, teacher: LanguageModel | None, batches: Sequence[Batch], tokenizer: Any
) -> dict[str, Any]:
    """Return the answers of all probes by name."""
    known = {id(one.module): one for one in (model, teacher) if one is not None}
    own = set(map(id, batches))

    def predict(module: nn.Module, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        asked = known[id(module)]
        if id(batch) not in own:  # those were looked at when the data was read, and a prompt is its reader's alone
            _validate_shared_vocabulary(batch, asked, tokenizer)
        batch = (batch.for_teacher() if asked is teacher else batch).to(asked.device)
        labels = asked.head.vocabulary.index(batch.labels)
        for rows, log_q, _ in log_probabilities(asked.head, asked.hidden(batch)):
            yield log_q, labels[rows]

    training = model.module.training
    model.module.eval()
    other = None if teacher is None else teacher.module
    answers = plugins.each(
        "on_evaluate", model=model.module, teacher=other, batches=batches, predict=predict, tokenizer=tokenizer
    )
    model.module.train(training)
    return answers


def _validate_shared_vocabulary(batch: Batch, model: LanguageModel, tokenizer: Any) -> None:
    """Refuse a probe's own text where only one of the models knows its tokens."""
    if strange := model.head.vocabulary.unshared(batch.input_ids):
        named = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in strange[:5])
        raise RunError(
            f"a probe's text has {len(strange)} tokens that teacher and student do not share, as {named}\n"
            "why: probabilities are compared over the tokens that both know\nfix: leave such text out of the probe"
        )
