"""What a teacher's cache will cost and how wrong it is, measured on a sample of the recipe's own data.

The error is that of the recipe's student before training, and grows as a student comes nearer to its teacher.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save
from torch import Tensor

from neoplug.data.batch import Batch, collate, positions_in_answers
from neoplug.models.verify import head_name
from neoplug.registry import Plugins
from neoplug.registry.teacher_reads import reads_teacher
from neoplug.runs.cache_folder import TeacherCache
from neoplug.runs.directory import RunDir
from neoplug.runs.signals import Stop
from neoplug.runs.steps import count_steps, make_losses, make_sampler
from neoplug.runs.teacher_documents import Lookup
from neoplug.runs.trainer import Trainer
from neoplug.teachers.base import SPARSE, Signal, SparseSignal, require_logits
from neoplug.teachers.cache_files import HELD_OUT, TRAIN, Header
from neoplug.teachers.signals import StatesSignal
from neoplug.training.module import StudentWithObjective, plugin_state_restored
from neoplug.training.objective import Loss, blocks

if TYPE_CHECKING:
    from neoplug.runs.teacher_build import CacheBuilder

logger = logging.getLogger(__name__)

SAMPLE_TOKENS, SAMPLE_BATCHES = 2048, 32  # answer tokens that are measured at least, in at most so many batches


@dataclass(frozen=True)
class CacheEstimate:
    """What building will take, and the error of what is stored.

    documents        training and held-out documents that have no record yet
    tokens           answer tokens of the training documents that the run reads, and of the held-out ones
    bytes_per_token  of a training document, in all draws
    bytes            of all documents that the run reads
    seconds          to compute what is missing, on this machine
    kl               nats per token: mean divergence of the stored distribution from the teacher's, over what is stored
    angle            degrees between the gradients of the losses that read the teacher, by all trainable weights, from
                     what is stored and from the teacher; of the sample's tokens together
    norm_ratio       of the first to the second
    sample_tokens    answer tokens of the sample
    """

    documents: dict[str, int]
    tokens: dict[str, int]
    bytes_per_token: float
    bytes: int
    seconds: float
    kl: float
    angle: float
    norm_ratio: float
    sample_tokens: int


def estimate(builder: CacheBuilder, header: Header, missing: Mapping[str, Lookup]) -> CacheEstimate:
    """Return the estimate for a cache whose header is written; loads the student and frees it again."""
    sample = _Sample(builder, header)
    sample.measure()
    gc.collect()
    report = builder.inputs.corpus.report
    share = len(builder.rows) / max(1, len(builder.inputs.corpus.rows))
    tokens = {TRAIN: round(share * report.train.answer_tokens), HELD_OUT: report.held_out.answer_tokens}
    documents = {TRAIN: round(share * report.train.documents), HELD_OUT: report.held_out.documents}
    left = sum(tokens[part] * lookup.absent / max(1, documents[part]) for part, lookup in missing.items())
    per_token = sample.bytes / sample.tokens
    return CacheEstimate(
        documents={part: lookup.absent for part, lookup in missing.items()},
        tokens=tokens,
        bytes_per_token=per_token,
        bytes=round(per_token * tokens[TRAIN] + 4 * header.hidden_size * tokens[HELD_OUT]),
        seconds=left * sample.seconds / sample.tokens,
        kl=sample.kl / sample.tokens,
        angle=sample.angle,
        norm_ratio=sample.norm_ratio,
        sample_tokens=sample.tokens,
    )


class _Sample:
    """Sums over some batches of training documents."""

    def __init__(self, builder: CacheBuilder, header: Header) -> None:
        self.builder, self.header = builder, header
        self.tokens, self.bytes, self.seconds, self.kl = 0, 0, 0.0, 0.0

    def measure(self) -> None:
        """Encode the batches, and compare what is stored with the teacher."""
        builder, plugins = self.builder, self.builder.checked.plugins
        cache = TeacherCache(builder.folder, self.header, plugins)
        student, exact, stored = self._student(), self._losses(plugins, False), self._losses(plugins, cache.has_entries)
        trained = [weight for weight in student.module.parameters() if weight.requires_grad]
        sums = [[torch.zeros_like(weight) for weight in trained] for _ in range(2)]
        for number in builder.sample_order()[:SAMPLE_BATCHES]:
            documents = [document for document in builder.batches[TRAIN][number] if document.answer_tokens]
            if not documents:
                continue
            began = monotonic()
            states, records = builder.encode(documents, self.header)
            self.bytes += sum(len(save(part)) for draws in records for part in draws)
            self.seconds += monotonic() - began
            self.tokens += len(states)
            first = [draws[0] for draws in records]
            head = builder.teacher_head()
            known = {"fitted": self.header.fitted, "tokens": len(states), "serves": cache.serves}
            decoded = plugins.one("decode_teacher", stored=first, head=head, **known)
            whole = StatesSignal(states, head)
            self.kl += divergence(decoded, whole, len(states))
            with plugin_state_restored(plugins):
                for total, losses, signal in ((sums[0], exact, whole), (sums[1], stored, decoded)):
                    batch = self._batch(documents, student)
                    weighted, _ = student(losses, batch, signal, 0.0)
                    parts = torch.autograd.grad(weighted, trained, allow_unused=True)
                    for gradient, part in zip(total, parts, strict=True):
                        if part is not None:
                            gradient.add_(part)
            if self.tokens >= SAMPLE_TOKENS:
                break
        self.angle, self.norm_ratio = compare(sums[1], sums[0])

    def _student(self) -> StudentWithObjective:
        """Return the recipe's student with its adapter, untrained, in evaluation mode."""
        builder = self.builder
        nowhere = RunDir(Path())  # nothing is written
        trainer = Trainer(builder.checked, builder.inputs, nowhere, builder.world, builder.progress, Stop())
        base = trainer.loader.load("student", builder.inputs.base)
        name = head_name(base)
        sampler = make_sampler(builder.checked, builder.inputs.corpus, builder.world.size)
        adapted, _ = trainer.add_adapter(base, count_steps(builder.checked.recipe.train, sampler.steps_per_epoch))
        student = trainer.loader.verify_student(adapted, name)
        student.module.eval()
        return StudentWithObjective(student, builder.checked.plugins.functions("token_weight"))

    def _losses(self, plugins: Plugins, has_entries: bool) -> list[Loss]:
        """Return the losses that read the teacher, with their weights at the first step."""
        reading = {name for name, loss in plugins.section("loss").items() if reads_teacher(loss) != "nothing"}
        weights = self.builder.checked.weights
        return [
            replace(loss, weight=weights[loss.name].at(0.0))
            for loss in make_losses(plugins, has_entries)
            if loss.name in reading
        ]

    def _batch(self, documents: Sequence[Any], student: StudentWithObjective) -> Batch:
        batch = collate(documents)
        if student.token_weights:
            batch.in_answer = positions_in_answers(documents)[batch.positions]
        return batch.to(student.student.device)


def compare(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    """Return the angle in degrees between two gradients, each a list of tensors, and the ratio of their norms."""
    dot = sum(float((a.double() * b.double()).sum()) for a, b in zip(found, expected, strict=True))
    norms = [math.sqrt(sum(float(part.double().square().sum()) for part in parts)) for parts in (found, expected)]
    if not all(norms):
        return math.nan, math.nan
    return math.degrees(math.acos(max(-1.0, min(1.0, dot / norms[0] / norms[1])))), norms[0] / norms[1]


@torch.no_grad()
def divergence(stored: Signal, exact: StatesSignal, tokens: int) -> float:
    """Return the sum over tokens of KL(stored, exact) in nats, over the outcomes that are stored.

    Of the teacher's largest entries, all other tokens are one outcome; of a sample, its entries are all outcomes.
    """
    total = 0.0
    for rows in blocks(tokens, exact.head.vocabulary.size, exact.states.device):
        log_p = torch.log_softmax(exact.logits(rows), -1)
        if SPARSE not in stored.provides:
            log_q = torch.log_softmax(require_logits(stored).logits(rows).to(log_p.device), -1)
            total += float((log_q.exp() * (log_q - log_p)).sum(dtype=torch.float64))
            continue
        entries = cast(SparseSignal, stored).sparse(rows).to(log_p.device)
        q, p = entries.probabilities.double(), log_p.gather(-1, entries.ids).double().exp()
        total += float(_terms(q, p).sum())
        if entries.rest is not None:
            total += float(_terms(entries.rest.double(), 1 - p.sum(-1)).sum())
    return total


def _terms(q: Tensor, p: Tensor) -> Tensor:
    """Return q log(q / p), 0 where q is not above 0."""
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(q > 0, q * (q.clamp(min=tiny) / p.clamp(min=tiny)).log(), 0.0)
