"""The training run in one process: loads the models, evaluates, trains, saves the student, writes the result."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from neoplug.data import BatchSampler
from neoplug.data.batch import Batch
from neoplug.distributed.world import World
from neoplug.errors import ImmediateStop, Interrupted, RunError
from neoplug.evaluation.evaluate import Evaluation
from neoplug.evaluation.model_selection import criterion
from neoplug.evaluation.remarks import remarks
from neoplug.models.language_model import LanguageModel, count_parameters
from neoplug.models.load import enable_checkpointing
from neoplug.models.stored_adapter import load_adapter_weights
from neoplug.models.verify import head_name
from neoplug.recipe import ResolvedRecipe
from neoplug.registry import Plugins
from neoplug.runs.adapted_weights import add_adapter
from neoplug.runs.artifacts import save_student, whole_weights, write_card
from neoplug.runs.directory import RunDir
from neoplug.runs.failure import FailureWriter
from neoplug.runs.first_step import distil_in_memory
from neoplug.runs.inputs import RunInputs
from neoplug.runs.model_loader import ModelLoader
from neoplug.runs.own_teacher import OwnTeacher
from neoplug.runs.progress import Progress
from neoplug.runs.result import EvaluationValues, RunResult, RunState, Sample
from neoplug.runs.resuming import deal_rows
from neoplug.runs.sample import continuation, sample_prompt
from neoplug.runs.save_dry_run import dry_run_save
from neoplug.runs.saved_comparison import Excerpt, on_main, validate_saved_student
from neoplug.runs.saved_student import trainable_as_float32
from neoplug.runs.sharding import shard_student, validate_optimizer
from neoplug.runs.signals import Stop
from neoplug.runs.steps import count_steps, make_losses, make_sampler, restored_weights, training_batches
from neoplug.runs.stopping import Stopping
from neoplug.runs.trackers import Trackers
from neoplug.seeds import derive, generator
from neoplug.teachers.base import Teacher
from neoplug.teachers.itself import WeightAverage
from neoplug.training import checkpoint
from neoplug.training.loop import LoopConfig, LoopEvents, Verdict
from neoplug.training.metrics import Metrics, peak_memory
from neoplug.training.optim import make_optimizer, make_schedule

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Trainer:
    """A training run in one process. Every rank has one; files are written by the main process."""

    checked: ResolvedRecipe
    inputs: RunInputs
    directory: RunDir
    world: World
    progress: Progress
    stop: Stop
    group: str | None = None  # what the run belongs to in trackers
    begun: ResolvedRecipe | None = None  # the recipe as a resumed run was started: its micro-batches may be others

    def __post_init__(self) -> None:
        self.loader = ModelLoader(self.checked, self.inputs, self.world)
        self.criterion = criterion(self.checked.recipe.evaluate)
        self.state = RunState(step=0, world=self.world.size, seconds=0.0)
        self.metrics: Metrics | None = None
        self.average: WeightAverage | None = None
        self.stopping = Stopping(self.checked.plugins, self.world.gather)

    def run(self) -> RunResult:
        """Train and evaluate; write the result, also that of a run that failed or was interrupted."""
        started = monotonic()
        needs_best = self.checked.recipe.evaluate.load_best_model_at_end
        earlier = checkpoint.latest(self.directory.checkpoints, with_best=needs_best)
        if earlier is not None:
            self.state = RunState.read(checkpoint.read_state(earlier), earlier / "state.json")
        deal_rows(self.state, self.checked.recipe.train, self.world.size, self.directory, earlier)
        self.began = started - self.state.seconds
        failures = FailureWriter(self.directory, self.world, self.stop)
        if self.world.is_main:
            self.directory.continue_from(self.state.step, self.state.metrics_sha256)
        self.trackers = Trackers(self.checked.plugins if self.world.is_main else Plugins({}))
        self.trackers.open(self.directory.path, self.checked.resolved(), self.group)
        try:
            return self.train_and_evaluate(earlier)
        except SystemExit as error:  # raised by a plugin: the run has failed, whatever the exit code
            failure = RunError(f"a plugin or a model of the recipe called sys.exit({error.code}) during the run")
            raise failures.write(failure, self.state, self.last_step) from error
        except (Exception, ImmediateStop) as error:
            raise failures.write(error, self.state, self.last_step)  # noqa: B904 (`error` itself, or one that it caused)
        finally:
            self.trackers.close()

    @property
    def last_step(self) -> int:
        """The last step that this process finished, or the one that it goes on from."""
        return self.metrics.last_step if self.metrics else self.state.step

    def train_and_evaluate(self, earlier: Path | None) -> RunResult:
        """Train and save the student; then load it from its files, compare it with the trained one, write the result.

        Teacher, student and optimizer are freed in between: only local variables of `train_and_save` refer to them.
        """
        measured, compare = self.train_and_save(earlier)
        self.average = None
        gc.collect()
        self.phase("loading the saved student")
        on_main(self.loader, compare)
        return self.complete(measured)

    def train_and_save(self, earlier: Path | None) -> tuple[dict[str, Any], Callable[[], None]]:
        """Load the models, evaluate, train from the checkpoint `earlier` or from the start, evaluate again, save.

        Returns the content of the result, and the comparison with the saved student, which refers to no model.
        """
        recipe, plugins = self.checked.recipe, self.checked.plugins
        sampler = make_sampler(self.checked, self.inputs.corpus, self.world.size)
        total = count_steps(recipe.train, sampler.steps_per_epoch)
        batches = self.loader.held_out()
        validate_optimizer(self.checked, self.world)
        self.phase("loading the models")
        teacher = self.loader.load_teacher()
        base = self.loader.load("student", self.inputs.base)
        name, continues = head_name(base), self.inputs.base.adapter is not None
        begins, own = earlier is None and not continues, None
        if begins or recipe.taught_by:
            unadapted = self.loader.verify_student(base, name)
            own = OwnTeacher(self.loader, unadapted) if recipe.taught_by else None
        if begins:
            self.evaluate_before(unadapted, own.base if own else teacher, batches)
        module, names_of_base = self.add_adapter(base, total)
        student = self.loader.verify_student(module, name)
        if own is not None:
            teacher, self.average = own.of(student), own.average
        if teacher is not None:
            logger.debug("teacher: %s", teacher.describe())
        if earlier is None and continues:  # the student before training includes its stored adapter
            self.evaluate_before(student, teacher, batches)
        if earlier is None:
            self.phase("trying to save the student")
            on_main(self.loader, partial(dry_run_save, student, self.loader, self.directory.path))
        shard_student(self.checked, module, names_of_base, self.world)
        optimizer = make_optimizer(student.module, plugins, recipe.train.learning_rate)
        schedule = make_schedule(optimizer, plugins, recipe.train, total)
        if earlier is not None:
            checkpoint.load(earlier, student.module, optimizer, schedule, plugins, self.world.rank, self.average)
        else:
            checkpoint.try_plugins(self.directory.checkpoints, student.module, plugins, writes=self.world.is_main)
        first = self.state.step
        if not recipe.data.packing and any(
            model and model.layout == "padded" for model in (student, teacher and teacher.model)
        ):
            sampler = replace(sampler, lengths=self.inputs.corpus.row_lengths)
        config = self.loop_config(student, teacher, sampler, total, optimizer, schedule)
        events = self.loop_events(config, batches)
        self.progress.started(total, first)
        with self.stop.deferring():
            ended = self.state.stopped_early
            done = first if ended else distil_in_memory(config, events, first, self.directory, self.checked)
            stopped = self.stop_requested()  # a rank may receive a signal after the last poll of the loop
        if stopped or done < (self.state.stopped_early or total):
            reason = f"stopped by a signal after step {done} of {total}; go on with --resume"
            raise Interrupted(self.stop.signal or 15, reason)
        return self.finish(student, teacher, batches, done)

    def loop_config(
        self, student: LanguageModel, teacher: Teacher | None, sampler: BatchSampler, total: int,
        optimizer: Optimizer, schedule: LRScheduler,
    ) -> LoopConfig:  # fmt: skip
        """Return the models, plugins and settings that the loop reads."""
        recipe, plugins = self.checked.recipe, self.checked.plugins
        return LoopConfig(
            student=student,
            teacher=teacher,
            average=self.average,
            losses=make_losses(plugins, self.inputs.has_entries, student),
            references=make_losses(self.checked.references, self.inputs.has_entries),
            weights=restored_weights(self.checked.weights, self.state.weights),
            plugins=plugins,
            corpus=self.inputs.corpus,
            sampler=sampler,
            optimizer=optimizer,
            schedule=schedule,
            world=self.world,
            settings=recipe.train,
            total_steps=total,
            eval_steps=recipe.evaluate.eval_steps,
            seed=recipe.seed,
        )

    def loop_events(self, config: LoopConfig, batches: list[Batch]) -> LoopEvents:
        """Return the callbacks of the loop, which write metrics and checkpoints and run evaluations."""
        student, varies = config.student, any(weight.varies for weight in config.weights.values())
        row_label = self.inputs.corpus.report.row_label
        places = partial(self.checked.plugins.places, "token_weight")
        self.metrics = Metrics(varies, self.write_lines, self.world.gather, row_label, self.state.step, places)
        return LoopEvents(
            metrics=self.metrics,
            on_calibrated=self.record_calibrated_weights,
            save=lambda step: self.save_checkpoint(step, student.module, config.optimizer, config.schedule),
            evaluate=lambda step: self.record_evaluation(
                step, self.loader.evaluate_student(student, config.teacher, batches)
            ),
            ends_early=lambda step: self.ends_early(step, self.stopping.after_lines()),
            stop_requested=self.stop_requested,
        )

    def record_calibrated_weights(self, weights: dict[str, float]) -> None:
        """Record calibrated weights for the result and for checkpoints, and log them."""
        self.state.weights = weights
        logger.info("calibrated: %s", ", ".join(f"{name} has weight {weight:.6g}" for name, weight in weights.items()))

    def phase(self, text: str) -> None:
        """Log the start of a phase and report it to `progress`."""
        logger.debug(text)
        self.progress.phase(text)

    def add_adapter(self, base: Any, total_steps: int) -> tuple[nn.Module, set[str]]:
        """Add the recipe's adapter, with stored weights if the recipe names them; trainable weights become float32.

        Returns the model, and the names of those of its weights that are the base's.
        """
        recipe, plugins = self.checked.recipe, self.checked.plugins
        (name,) = plugins.implements("add_adapter")
        self.phase("adding the adapter")
        torch.manual_seed(derive(recipe.seed, name))
        weights = list(base.parameters())
        if recipe.train.gradient_checkpointing:
            enable_checkpointing(base)
        batches, rng = training_batches(self.begun or self.checked, self.inputs.corpus), generator(recipe.seed, name)
        model = add_adapter(plugins, base, batches=batches, total_steps=total_steps, rng=rng)
        if self.loader.has_rounded(weights, name):
            self.inputs = self.loader.inputs = replace(self.inputs, trains_whole=None)
            return self.add_adapter(self.loader.load("student", self.inputs.base), total_steps)
        if stored := self.inputs.base.adapter:
            load_adapter_weights(model, stored, name)
        self.loader.round_frozen_weights(weights)
        of_base = set(map(id, weights))
        return trainable_as_float32(model), {name for name, w in model.named_parameters() if id(w) in of_base}

    def evaluate_before(self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch]) -> None:
        """Evaluate the untrained student and the teacher, and generate a sample; record all in `state`."""
        self.phase("evaluating the student before training, and the teacher")
        evaluation, teachers = self.loader.evaluate_both(student, teacher, batches)
        before = self.store_evaluation("before", evaluation)
        of_teacher = {} if teachers is None else self.store_evaluation("teacher", teachers)
        if self.criterion is not None:
            self.criterion.value(before)  # fail before training if the metric is absent
        prompt, tokenizer = sample_prompt(self.inputs), self.inputs.tokenizer
        text = str(tokenizer.decode(prompt, skip_special_tokens=True))
        sample = Sample(prompt=text, before=continuation(student, prompt, tokenizer))
        self.trackers.evaluation(0, before)
        self.state.before, self.state.sample = before, sample
        if of_teacher:
            self.trackers.evaluation(0, of_teacher, "teacher")
            self.state.teacher = of_teacher

    def stop_requested(self) -> bool:
        """Return whether any rank received a signal to stop; one process makes no tensor: its copy to a GPU waits."""
        asked = int(self.stop.signal is not None)
        return bool(asked if self.world.size == 1 else self.world.sum(torch.tensor(asked, device=self.world.device)))

    def write_lines(self, lines: list[dict[str, Any]]) -> None:
        """Write lines to metrics.jsonl, then report them to log, progress and trackers; on the main process only."""
        self.stopping.add(lines)
        if not self.world.is_main:
            return
        self.directory.metrics.append(lines)
        for line in lines:
            logger.debug("step %d: loss %.6g, gradient %.4g", line["step"], line["loss"], line["grad_norm"])
            self.progress.step(line)
            self.trackers.log(line)

    def save_checkpoint(self, step: int, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> None:
        """Write a checkpoint on the main process, with the plugin states of all ranks."""
        plugins, folder, main = self.checked.plugins, self.directory.checkpoints, self.world.is_main
        packed = self.world.gather([checkpoint.pack(plugins)])
        if main:
            self.state.step, self.state.seconds = step, monotonic() - self.began
            self.state.metrics_sha256 = self.directory.metrics.sha256()
        state = self.state.as_dict()
        checkpoint.save(folder, step, model, optimizer, schedule, plugins, packed, state, self.average, writes=main)
        if main:
            best = self.state.best.step if self.state.best else None
            checkpoint.prune(folder, self.checked.recipe.train.save_total_limit, best)
        self.world.wait()

    def record_evaluation(self, step: int, evaluation: Evaluation) -> Verdict:
        """Record an evaluation during training; return whether it is the best so far, and whether training ends."""
        measured = self.store_evaluation(f"step-{step}", evaluation)
        self.state.evaluations = [*self.state.evaluations, self.world.broadcast({"step": step, **measured})]
        self.trackers.evaluation(step, measured)
        logger.info("step %d: %s", step, ", ".join(f"{k} {v:.4g}" for k, v in measured.items() if isinstance(v, float)))
        ends = self.ends_early(step, self.stopping.after_evaluation(self.state.evaluations[-1]))
        if self.criterion is None:
            return Verdict(improved=False, stop=ends)
        self.state.best = self.criterion.best_of(self.state.evaluations)
        return Verdict(improved=self.state.best.step == step, stop=ends)

    def ends_early(self, step: int, reason: str | None) -> bool:
        """Record the first reason to end training after `step`; return whether there is one."""
        if reason and self.state.stopped_early is None:
            self.state.stopped_early, self.state.stop_reason = step, reason
            logger.info("training ends: %s", reason)
        return self.state.stopped_early is not None

    def finish(
        self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch], done: int
    ) -> tuple[dict[str, Any], Callable[[], None]]:
        """Evaluate the trained student and save it; return what `train_and_save` does."""
        self.phase("evaluating the student after training")
        after = self.evaluate_best(student, teacher, batches, done)
        self.trackers.evaluation(done, after)
        if self.average is not None and self.state.teacher:
            self.trackers.evaluation(done, self.state.teacher, "teacher")
        if self.state.sample:
            self.state.sample.after = continuation(student, sample_prompt(self.inputs), self.inputs.tokenizer)
        module, lines = student.module, self.directory.metrics.read()
        measured = {
            "format": 1,
            "status": "completed",
            **self.state.measured(),
            "after": after,
            "trainable_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
            "total_parameters": count_parameters(module),
            "steps": done,
            "tokens": sum(line["tokens"] for line in lines),
            "answer_tokens": sum(line["answer_tokens"] for line in lines),
            "peak_memory_bytes": peak_memory(self.world.device),
        }
        excerpt = Excerpt.of(student, self.loader)
        expected = excerpt.logits(module)
        weights = whole_weights(module, self.checked, keep=self.world.is_main)
        if self.world.is_main:
            self.phase("saving the student")
            save_student(module, self.checked, self.inputs.base, self.inputs.tokenizer, self.directory, weights)
        adapters = self.checked.plugins.section("adapter")
        measured["remarks"] = remarks(measured, self.checked.recipe.reference, adapters)
        for remark in measured["remarks"]:
            logger.debug(remark)
        reserved = set(RunResult.model_fields)  # plugins add keys of other names
        self.checked.plugins.each("on_train_end", model=module, result=measured, reserved=reserved)
        return measured, partial(validate_saved_student, self.directory, self.loader, excerpt, expected)

    def complete(self, measured: dict[str, Any]) -> RunResult:
        """Write the model card and the result of a run whose student is saved."""
        result = RunResult(**measured, seconds=monotonic() - self.began)
        if self.world.is_main:
            write_card(self.directory, result)
            self.directory.write_result(result)
        self.progress.finished(result.as_dict())
        self.world.wait()
        return result

    def evaluate_best(
        self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch], done: int
    ) -> EvaluationValues:
        """Evaluate the student; if the recipe says so, restore the best step and evaluate that instead."""
        after = self.evaluate_after(student, teacher, batches)
        recipe, folder = self.checked.recipe, self.directory
        if self.criterion is None:
            return after
        evaluations = [*self.state.evaluations, self.world.broadcast({"step": done, **after})]
        best = self.state.best = self.criterion.best_of(evaluations)
        if self.world.is_main:
            checkpoint.prune(folder.checkpoints, recipe.train.save_total_limit, best.step)
        if best.step == done or not recipe.evaluate.load_best_model_at_end:
            return after
        self.phase(f"restoring the best step, {best.step}")
        kept = checkpoint.at(folder.checkpoints, best.step)
        checkpoint.restore(kept, student.module, self.checked.plugins, self.world.rank, self.average)
        return self.evaluate_after(student, teacher, batches)

    def evaluate_after(self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch]) -> EvaluationValues:
        """Evaluate the trained student, and again a teacher that was trained with it."""
        if self.average is None:
            return self.store_evaluation("after", self.loader.evaluate_student(student, teacher, batches))
        after, teachers = self.loader.evaluate_both(student, teacher, batches)
        if teachers is not None:
            self.state.teacher = self.store_evaluation("teacher", teachers)
        return self.store_evaluation("after", after)

    def store_evaluation(self, name: str, evaluation: Evaluation) -> EvaluationValues:
        """Write the sums per document of an evaluation on the main process; return its metrics and probes."""
        if self.world.is_main:
            self.directory.write_evaluation(name, evaluation.documents)
        return evaluation.values
