"""Multiple choice: accuracy of the answer to which the model gives the highest likelihood.

    score     log p(answer | query) in nats, summed over the answer's tokens; query and answer are separated by a space
    acc       share of questions whose answer with the highest score is the right one
    acc_norm  the same with score / characters of the answer, which does not favour short answers

Both have a `_stderr`, the standard error of the mean over questions. Names, definitions and tokenisation are those of
EleutherAI's lm-evaluation-harness (`output_type: multiple_choice`); a test compares them. To show a model that always
chooses the same position, `chosen` counts how often each position had the highest score, `chosen_norm` the highest
score per character, and `gold` how often it was right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neoplug import Batch, Document, Problem, RunError, UsageError, collate, hookimpl
from neoplug_probes.questions import Question, read_questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Predict = Callable[[torch.nn.Module, Batch], Iterator[tuple[Tensor, Tensor]]]


@dataclass(eq=False)
class MultipleChoice:
    """Accuracy on local multiple-choice tasks: jsonl files with rows {query, choices, gold}, each named as its file."""

    tasks: Path | list[Path] | dict[str, Path]  # a file, several, or {name: file}
    limit: int | None = None  # only the first questions of each task
    batch_size: int = 32  # answers per forward pass

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        if not self._files():
            raise ValueError("tasks names no file")
        if isinstance(self.tasks, list) and len(self._files()) < len(self.tasks):
            raise ValueError("tasks has two files of one name; write {name: file, ...}")

    def _files(self) -> dict[str, Path]:
        """Return {task: file}."""
        if isinstance(self.tasks, dict):
            return self.tasks
        return {file.stem: file for file in ([self.tasks] if isinstance(self.tasks, Path) else self.tasks)}

    @hookimpl
    def check(self) -> list[Problem]:
        """Refuse files that are not valid tasks."""
        problems = []
        for file in self._files().values():
            try:
                read_questions(file, self.limit)
            except UsageError as error:
                what, _, fix = str(error).partition("\nfix: ")
                problems.append(Problem(what, fix=fix))
        return problems

    @hookimpl
    def on_evaluate(
        self, model: torch.nn.Module, predict: Predict, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, dict[str, Any]]:
        """Return {task: {acc, acc_stderr, acc_norm, acc_norm_stderr, questions, chosen, chosen_norm, gold}}."""
        return {
            name: self._measure(read_questions(file, self.limit), model, predict, tokenizer)
            for name, file in self._files().items()
        }

    def _measure(
        self, questions: Sequence[Question], model: torch.nn.Module, predict: Predict, tokenizer: Any
    ) -> dict[str, Any]:
        pairs = [(question.query, choice) for question in questions for choice in question.choices]
        documents = [_document(tokenizer, *pair, row) for row, pair in enumerate(pairs)]
        _validate_document_lengths(documents, model)
        ends = np.cumsum([len(question.choices) for question in questions])[:-1]
        return metrics(questions, np.split(self._log_likelihoods(documents, model, predict), ends))

    def _log_likelihoods(self, documents: list[Document], model: torch.nn.Module, predict: Predict) -> np.ndarray:
        """Return log p(answer | query) of each document, in nats; documents of similar length share a batch."""
        scores = torch.zeros(len(documents), dtype=torch.float64)
        ordered = sorted(documents, key=len)
        for start in range(0, len(ordered), self.batch_size):
            batch = collate(ordered[start : start + self.batch_size])
            parts = [log_q.gather(-1, labels[:, None])[:, 0] for log_q, labels in predict(model, batch)]
            scores.index_add_(0, batch.rows, torch.cat(parts).cpu().double())
        return scores.numpy()


def metrics(questions: Sequence[Question], scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the metrics of the probe from the scores of each question's answers, [choices] nats."""
    lengths = [np.array([len(choice) for choice in question.choices]) for question in questions]
    chosen = [int(np.argmax(score)) for score in scores]
    chosen_norm = [int(np.argmax(score / length)) for score, length in zip(scores, lengths, strict=True)]
    gold = [question.gold for question in questions]
    positions = max(len(question.choices) for question in questions)
    return {
        **_accuracy("acc", chosen, gold),
        **_accuracy("acc_norm", chosen_norm, gold),
        "questions": len(questions),
        "chosen": np.bincount(chosen, minlength=positions).tolist(),
        "chosen_norm": np.bincount(chosen_norm, minlength=positions).tolist(),
        "gold": np.bincount(gold, minlength=positions).tolist(),
    }


def _accuracy(name: str, chosen: Sequence[int], gold: Sequence[int]) -> dict[str, float | None]:
    """Return the share of right answers and its standard error, which is None for one question."""
    right = [float(choice == position) for choice, position in zip(chosen, gold, strict=True)]
    error = stdev(right) / len(right) ** 0.5 if len(right) > 1 else None
    return {name: sum(right) / len(right), f"{name}_stderr": error}


def _document(tokenizer: Any, query: str, choice: str, row: int) -> Document:
    """Tokenise query and answer together; the tokens after those of the query alone are the answer.

    A space at the end of the query counts as part of the answer: most tokenizers join it with the following word.
    """
    bos = tokenizer.bos_token
    special = bos is None or not query.startswith(bos)
    whole = tokenizer.encode(f"{query} {choice}", add_special_tokens=special)
    query_tokens = len(tokenizer.encode(query.rstrip(), add_special_tokens=special))
    if query_tokens >= len(whole):
        raise RunError(f"the tokenizer leaves no token for the answer {choice!r} after {query[-40:]!r}")
    return Document(np.array(whole, dtype=np.int64), np.arange(len(whole)) >= query_tokens, row)


def _validate_document_lengths(documents: Sequence[Document], model: Any) -> None:
    """Refuse documents that are longer than the model has positions."""
    longest = max(len(document) for document in documents)
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None) or longest
    if longest > positions:
        raise RunError(
            f"a question and its answer have {longest} tokens together, but the model was made for {positions}\n"
            "why: it has no positions for the tokens after that\nfix: leave such questions out"
        )
