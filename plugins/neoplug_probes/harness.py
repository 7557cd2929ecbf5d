"""Tasks of EleutherAI's lm-evaluation-harness, run by its own code on the model at hand: extra `eval`.

With `include_path`, a folder of task files, only its tasks are known, so that no network is needed; without one, those
that lm_eval includes, whose data it downloads from the hub.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neoplug import Problem, RunError, did_you_mean, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(eq=False)
class Harness:
    """Tasks of lm_eval by name; options have the names and meanings of lm_eval's."""

    tasks: str | list[str]
    include_path: Path | None = None
    num_fewshot: int | None = None  # None is the task's own
    limit: int | None = None  # only the first documents of each
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        if not self.tasks:
            raise ValueError("tasks names none")

    @hookimpl
    def check(self) -> list[Problem]:
        """Refuse where lm_eval is missing."""
        if find_spec("lm_eval") is not None:
            return []
        why = "lm_eval is not installed: it comes with the extra `eval`"
        return [Problem("tasks of lm_eval cannot be run here", why, "pip install 'neoplug[eval]'")]

    @hookimpl
    def on_evaluate(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, Any]]:
        """Return {task: {metric: value}}, as lm_eval reports them; `acc` is its `acc,none`.

        Raises RunError for a task that lm_eval does not have.
        """
        names = [self.tasks] if isinstance(self.tasks, str) else list(self.tasks)
        with _undisturbed(model):
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager

            folder = None if self.include_path is None else str(self.include_path)
            manager = TaskManager(include_path=folder, include_defaults=folder is None)
            if unknown := [name for name in names if name not in manager.all_tasks]:
                close = did_you_mean(unknown[0], manager.all_tasks)
                raise RunError(
                    f"lm_eval knows no task `{unknown[0]}`{close}\nwhy: looked in {folder or 'its own tasks'}"
                )
            wrapped = HFLM(
                pretrained=model,
                tokenizer=deepcopy(tokenizer),  # it may get another padding token
                batch_size=self.batch_size,
                mixed_precision_dtype=_autocast(model),
            )
            found = simple_evaluate(
                wrapped,
                tasks=names,
                task_manager=manager,
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                log_samples=False,
            )
        return {task: _numbers(measured) for task, measured in found["results"].items()}


def _autocast(model: torch.nn.Module) -> torch.dtype | None:
    """Return the narrower data type of a model with two: trainable weights are float32, the rest may be bfloat16."""
    narrow = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16}
    wide = any(p.dtype == torch.float32 for p in model.parameters())
    return next(iter(narrow)) if narrow and wide else None


def _numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    return {
        name.removesuffix(",none"): value
        for name, value in measured.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Restore the state of the run: lm_eval seeds every generator, ties weights again, and logs."""
    states = random.getstate(), np.random.get_state()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    model.tie_weights = lambda *_, **__: None
    try:
        cards = {parameter.device.index for parameter in model.parameters() if parameter.is_cuda}
        with torch.random.fork_rng(devices=sorted(cards)), warnings.catch_warnings():
            yield
    finally:
        del model.tie_weights
        logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
