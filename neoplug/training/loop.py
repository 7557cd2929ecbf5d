"""The distillation loop: one function that reads from top to bottom.

It names no plugin and opens no file: `LoopConfig` holds the models and plugins, `LoopEvents` the callbacks for metrics,
checkpoints and evaluations. The objective is an exact sum over answer tokens, divided once by the number of answer
tokens of all micro-batches and ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from neoplug.data import BatchSampler, Corpus
from neoplug.data.batch import Batch
from neoplug.distributed.world import World
from neoplug.errors import RunError
from neoplug.models.language_model import LanguageModel
from neoplug.recipe import Train
from neoplug.recipe.loss_weights import Weight
from neoplug.registry import Plugins
from neoplug.seeds import derive
from neoplug.teachers.base import Teacher
from neoplug.teachers.cached import SAMPLED, CachedTeacher
from neoplug.teachers.itself import WeightAverage
from neoplug.training.batch_source import BatchSource, progress_at, step_batches
from neoplug.training.diagnostics import Diagnosis
from neoplug.training.metrics import Metrics, StepValues, add_plugin_metrics, peak_memory
from neoplug.training.module import StudentWithObjective, gradient_norms, plugin_state_restored
from neoplug.training.objective import Loss


class Verdict(NamedTuple):
    """What the loop does after an evaluation.

    improved  the evaluation is the best so far: save a checkpoint
    stop      a plugin ends training: save a checkpoint and end
    """

    improved: bool
    stop: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class LoopConfig:
    """The models, plugins and settings of the loop; the loop assigns none of the fields.

    average      the average of the trained weights that is the teacher; None where the teacher is another
    losses       losses that are minimised, in the order in which metrics list them
    references   losses that others are calibrated to and that are not minimised
    weights      loss name -> its weight; weights to calibrate are calibrated at the first step
    settings     section `train` of the recipe
    total_steps  optimizer steps of the whole run
    eval_steps   optimizer steps between evaluations during training; None: there are none
    """

    student: LanguageModel
    teacher: Teacher | None
    average: WeightAverage | None
    losses: list[Loss]
    references: list[Loss]
    weights: Mapping[str, Weight]
    plugins: Plugins
    corpus: Corpus
    sampler: BatchSampler
    optimizer: Optimizer
    schedule: LRScheduler
    world: World
    settings: Train
    total_steps: int
    eval_steps: int | None
    seed: int

    @property
    def batches(self) -> BatchSource:
        """Return the micro-batches of this rank."""
        return BatchSource(
            corpus=self.corpus,
            sampler=self.sampler,
            plugins=self.plugins,
            seed=self.seed,
            rank=self.world.rank,
            vocabulary=self.student.head.vocabulary,
            teacher_is_stored=isinstance(self.teacher, CachedTeacher),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class LoopEvents:
    """The callbacks of the loop; those with an argument `step` receive the number of optimizer steps done.

    metrics         collects the values of each step; flushed every `logging_steps`, and before a save or an evaluation
    on_calibrated   called once with the weights of all losses, at the first step, where one is calibrated
    save            saves a checkpoint: called every `save_steps`, at the end or a stop, and after an improvement
    evaluate        evaluates the student: called every `eval_steps`; returns whether to save now, and whether to end
    ends_early      returns whether a plugin ends training, by the lines since the last call; the same on all ranks
    stop_requested  returns whether training is to end after this step, the same on all ranks
    """

    metrics: Metrics
    on_calibrated: Callable[[dict[str, float]], None]
    save: Callable[[int], None]
    evaluate: Callable[[int], Verdict]
    ends_early: Callable[[int], bool]
    stop_requested: Callable[[], bool]


def distil(config: LoopConfig, events: LoopEvents, first: int = 0) -> int:
    """Train from step `first` until the last step, a requested stop or that of a plugin; return the steps done.

    Raises:
        RunError: a loss or gradient is not finite.
    """
    settings, world, weights = config.settings, config.world, dict(config.weights)
    unwrapped = StudentWithObjective(config.student, config.plugins.functions("token_weight"))
    module = world.wrap(unwrapped)
    parameters = [parameter for parameter in config.student.module.parameters() if parameter.requires_grad]
    module.train()
    with step_batches(config.batches, world.device, first, config.total_steps) as batches_of:
        for step in range(first, config.total_steps):
            started = perf_counter()
            progress = progress_at(step, config.total_steps)
            torch.manual_seed(derive(config.seed, "step", step, world.rank))  # dropout repeats in a resumed run
            batches = batches_of(step)
            tokens = sum(batch.tokens for batch, real in batches if real)
            counts = torch.tensor([sum(batch.answer_tokens for batch, _ in batches), tokens])
            counts = world.sum(counts.to(world.device, non_blocking=True))
            # A wrapper averages gradients over ranks, where a sum is needed.
            scale = world.size / counts[0].clamp(min=1)

            done = step + 1
            logs, ends = done % settings.logging_steps == 0, done == config.total_steps
            diagnosis = Diagnosis(world.device) if logs or ends else None
            if step == 0 and any(weight.calibrate and not weight.measured for weight in weights.values()):
                losses = [*config.losses, *config.references]
                weights = calibrate(weights, measure_gradient_norms(config, unwrapped, losses, batches, step, progress))
                events.on_calibrated({name: weight.value for name, weight in weights.items()})
            losses = [replace(loss, weight=weights[loss.name].at(progress)) for loss in config.losses]
            norms = {}
            if (logs or ends) and settings.log_gradient_norms:
                norms = measure_gradient_norms(config, unwrapped, losses, batches, step, progress)
            values = []
            for number, (batch, _) in enumerate(batches):
                signal = None if config.teacher is None else config.teacher.signal(batch)  # it may be on another device
                if config.teacher is not None and (following := following_batch(config, batches[number + 1 :], done)):
                    config.teacher.prefetch(following)
                batch = batch.to(world.device)
                with world.accumulating(module, last=number == len(batches) - 1):
                    total, each = module(losses, batch, signal, progress, diagnosis)
                    del signal  # it holds a block of logits
                    (total * scale).backward()
                values.append((batch.rows, each))

            extras: dict[str, Any] = {}
            penalties = config.plugins.each("penalty", model=config.student.module, progress=progress)
            if penalties:
                extras["penalty"] = add_penalty(penalties, parameters)
            extras["grad_norm"] = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or float("inf"))
            if isinstance(config.teacher, CachedTeacher) and config.teacher.is_sampled:
                extras["teacher_signal"] = SAMPLED
            rate = config.schedule.get_last_lr()[0]
            config.optimizer.step()
            config.schedule.step()

            sums = world.sum(torch.stack([each.sum(-1) for _, each in values]).sum(0))
            means = dict(zip([loss.name for loss in config.losses], sums / counts[0].clamp(min=1), strict=True))
            seen = {"step": done, "counts": counts, "sums": sums, "losses": means, **extras}
            answers = config.plugins.each(
                "on_step_end", step=done, progress=progress, model=config.student.module, metrics=seen
            )
            for name, answer in answers.items():
                add_plugin_metrics(extras, name, answer)
            if config.average is not None:
                config.average.update()
            config.optimizer.zero_grad()
            host_values = {"step": done, "started": started, "learning_rate": rate, "seconds": perf_counter() - started}
            host_values["peak_memory_bytes"] = peak_memory(world.device)
            rows = [(rows, each.isfinite().all(0)) for rows, each in values]
            diagnosed = None if diagnosis is None else world.sum(diagnosis.sums)
            used = {loss.name: loss.weight for loss in losses}
            events.metrics.add(
                StepValues(host_values, counts, sums, extras, rows, diagnosed, used, norms, unwrapped.invalid_weights())
            )

            stops = (world.size == 1 or logs) and events.stop_requested()  # several ranks synchronise for it
            saves = done % settings.save_steps == 0 or ends or stops
            evaluates = config.eval_steps is not None and done % config.eval_steps == 0 and not ends
            verdict = Verdict(improved=False, stop=False)
            if logs or saves or evaluates:
                events.metrics.flush()
                verdict = Verdict(improved=False, stop=not ends and events.ends_early(done))
            if evaluates:
                improved, stop = events.evaluate(done)
                verdict = Verdict(improved, verdict.stop or stop)
                module.train()
            if saves or any(verdict):
                events.save(done)
            if stops or verdict.stop:
                return done
    return config.total_steps


def following_batch(config: LoopConfig, left: Sequence[tuple[Batch, bool]], step: int) -> Batch | None:
    """Return the next micro-batch: the first of those that are left, else of `step`.

    That of the next step is as it is before all edits, which leave the text of a teacher without a model as it is. None
    for any other teacher, after the last step, and where this rank has no rows.
    """
    if left:
        return left[0][0]
    if config.teacher is None or config.teacher.model is not None or step == config.total_steps:
        return None
    rows = config.sampler.micro_batches(step, config.world.rank)[0]
    return config.batches.unedited(step, rows) if rows else None


def measure_gradient_norms(
    config: LoopConfig, module: StudentWithObjective, losses: Sequence[Loss], batches: Sequence[tuple[Batch, bool]],
    step: int, progress: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the gradient norm of each loss at this step by name; plugin states and the random state are restored."""
    with plugin_state_restored(config.plugins):
        norms = gradient_norms(module, config.teacher, losses, [batch for batch, _ in batches], progress, config.world)
    torch.manual_seed(derive(config.seed, "step", step, config.world.rank))
    return {loss.name: norm for loss, norm in zip(losses, norms, strict=True)}


def calibrate(weights: Mapping[str, Weight], norms: Mapping[str, Tensor]) -> dict[str, Weight]:
    """Return the weights, those to calibrate multiplied by |gradient of the other loss| / |gradient of this loss|.

    Raises:
        RunError: the gradient norm of one of the two is 0 or not finite.
    """
    values = {name: float(norm) for name, norm in norms.items()}
    calibrated = dict(weights)
    for name, weight in weights.items():
        if weight.calibrate is not None:
            for loss in (name, weight.calibrate):
                validate_gradient_norm(loss, values[loss], name)
            calibrated[name] = weight.calibrated(weight.value * values[weight.calibrate] / values[name])
    return calibrated


def validate_gradient_norm(loss: str, norm: float, calibrated: str) -> None:
    """Refuse to calibrate a weight by a gradient norm that is 0 or not finite."""
    if not isfinite(norm) or norm == 0:
        raise RunError(
            f"the weight of `{calibrated}` cannot be calibrated: at the first step the gradient of `{loss}` is {norm}\n"
            "why: weights are the ratio of the two gradients' norms, over the rows of the first step\n"
            f"fix: give `{calibrated}` a weight and no `calibrate`; a student that equals its teacher has no gradient"
        )


def add_penalty(penalties: dict[str, Tensor], parameters: list[nn.Parameter]) -> Tensor:
    """Add the gradient of the sum of the penalties to `.grad` of the parameters; return the sum, detached."""
    total = torch.stack(list(penalties.values())).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return total.detach()
