"""Tasks of EleutherAI's lm-evaluation-harness, run by its own code on the model: needs the extra `eval`.

With `include_path`, a folder of task files, only its tasks are available, and no network is needed. Without it, the
tasks of lm_eval are available, whose data it downloads from the hub.
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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neoplug import CodePath, Problem, RunError, confined, did_you_mean, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(eq=False)
class Harness:
    """Evaluate tasks of lm-evaluation-harness by name; options have lm_eval's names and meanings."""

    tasks: str | list[str]
    include_path: CodePath | None = None  # task files name functions, and hold templates that run
    num_fewshot: int | None = None  # examples in the prompt; left out: the task's
    limit: int | None = None  # only the first documents of each task
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        if not self.tasks:
            raise ValueError("tasks is empty")

    @hookimpl
    def check(self) -> list[Problem]:
        """Refuse an environment without lm_eval."""
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
        with _restoring_state(model):
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager

            folder = None if self.include_path is None else str(self.include_path)
            with confined("lm_eval"):
                manager = TaskManager(include_path=folder, include_defaults=folder is None)
            manager.load = confined("lm_eval")(manager.load)  # imports the functions that task files name
            if unknown := [name for name in names if name not in manager.all_tasks]:
                close = did_you_mean(unknown[0], manager.all_tasks)
                raise RunError(f"lm_eval has no task `{unknown[0]}`{close}\nwhy: looked in {folder or 'its own tasks'}")
            wrapped = HFLM(
                pretrained=model,
                tokenizer=deepcopy(tokenizer),  # lm_eval may set another padding token
                batch_size=self.batch_size,
                mixed_precision_dtype=_autocast(model),
            )
            report = simple_evaluate(
                wrapped,
                tasks=names,
                task_manager=manager,
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                log_samples=False,
            )
        return {task: _numbers(measured) for task, measured in report["results"].items()}


def _autocast(model: torch.nn.Module) -> torch.dtype | None:
    """Return the 16-bit data type of a model that also has float32, else None: trainable weights are float32."""
    narrow = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16}
    wide = any(p.dtype == torch.float32 for p in model.parameters())
    return next(iter(narrow)) if narrow and wide else None


def _numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the numeric metrics, named without `,none`."""
    return {
        name.removesuffix(",none"): value
        for name, value in measured.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


@contextmanager
def _restoring_state(model: Any) -> Iterator[None]:
    """Protect the state of the run: lm_eval seeds every generator, ties weights again, and logs."""
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
