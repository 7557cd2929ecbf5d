"""One process at work on a run: from loading the models to the result."""

import logging
from dataclasses import dataclass, replace
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
from neoplug.errors import Interrupted, NeoplugError, PluginError, RunError, UsageError
from neoplug.evaluation.evaluate import Evaluation
from neoplug.evaluation.model_selection import criterion
from neoplug.evaluation.remarks import remarks
from neoplug.files import remove_partial
from neoplug.models.language_model import LanguageModel
from neoplug.models.quiet import quiet, quiet_peft
from neoplug.models.stored_adapter import load_adapter_weights, virtual_tokens
from neoplug.models.verify import head_name
from neoplug.recipe import ResolvedRecipe
from neoplug.recipe.loss_weights import Weight
from neoplug.runs.artifacts import save_student, write_card
from neoplug.runs.directory import RunDir
from neoplug.runs.inputs import RunInputs
from neoplug.runs.model_loader import ModelLoader
from neoplug.runs.progress import Progress
from neoplug.runs.result import EvaluationValues, RunResult, RunState, Sample, Status
from neoplug.runs.saved_student import widened
from neoplug.runs.signals import EndedNow, Stop
from neoplug.runs.steps import count_steps, make_losses, make_sampler, training_batches
from neoplug.runs.trackers import Trackers
from neoplug.seeds import derive, generator
from neoplug.teachers.base import Teacher
from neoplug.training import checkpoint
from neoplug.training.loop import LoopConfig, LoopEvents, Verdict, distil
from neoplug.training.metrics import Metrics, peak_memory
from neoplug.training.optim import make_optimizer, make_schedule

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Trainer:
    """One process at work on a run: from loading the models to the result."""

    checked: ResolvedRecipe
    parts: RunInputs
    directory: RunDir
    world: World
    progress: Progress
    stop: Stop

    def __post_init__(self) -> None:
        self.roles = ModelLoader(self.checked, self.parts, self.world)
        self.criterion = criterion(self.checked.recipe.evaluate)
        self.state = RunState(step=0, world=self.world.size, seconds=0.0)

    def run(self) -> RunResult:
        """Train and evaluate; write the result, also that of a run that failed or was interrupted."""
        started = monotonic()
        earlier = checkpoint.latest(self.directory.checkpoints)
        if earlier is not None:
            self.state = RunState.read(checkpoint.read_state(earlier), earlier / "state.json")
            self.validate_world_size(self.state.world)
        self.began = started - self.state.seconds
        if self.world.is_main:
            remove_partial(self.directory.path)
            self.directory.metrics.cut(self.state.step)
        reported = self.checked.recipe.trackers if self.world.is_main else []
        self.trackers = Trackers(reported, self.directory.path, self.checked.resolved())
        try:
            return self.work(earlier)
        except SystemExit as error:  # a plugin's: the run must not look as if it had ended well
            failure = RunError(
                f"something that the recipe names called sys.exit({error.code}) in the middle of the run"
            )
            self.note_end(failure)
            raise failure from error
        except (Exception, EndedNow) as error:
            self.note_end(error)
            raise
        finally:
            self.trackers.finish()

    def note_end(self, error: BaseException) -> None:
        """Write down how a run ended that did not complete."""
        if isinstance(error, PluginError) and self.world.is_main:
            error.log = self.directory.log
        explained = isinstance(error, NeoplugError | EndedNow)
        status: Status = "interrupted" if isinstance(error, Interrupted | EndedNow) else "failed"
        reason = str(error) if explained else f"{type(error).__name__}: {error}"
        logger.debug("%s: %s", status, reason, exc_info=error.__cause__ or (None if explained else error))
        self.write(RunResult(format=1, status=status, reason=reason, **self.state.measured()))

    def validate_world_size(self, size: int) -> None:
        """Refuse to go on with another number of processes: a step would hold other rows."""
        if size != self.world.size:
            raise UsageError(
                f"{self.directory.path} was trained by {size} processes, and there are {self.world.size} now\n"
                "why: a step holds the rows of all processes, so the run would go on with other steps\n"
                f"fix: go on with {size}, or start a new run"
            )

    def work(self, earlier: Path | None) -> RunResult:
        """Load, measure, train, measure again, save."""
        recipe, plugins = self.checked.recipe, self.checked.plugins
        sampler = make_sampler(self.checked, self.parts.corpus, self.world.size)
        total = count_steps(recipe.train, sampler.steps_per_epoch)
        batches = self.roles.held_out()
        self.phase("loading the models")
        teacher = self.roles.teacher()
        if teacher is not None:
            logger.debug("teacher: %s", teacher.describe())
        bare = self.roles.load("student", self.parts.base)
        name, continues = head_name(bare), self.parts.base.adapter is not None
        if earlier is None and not continues:
            self.measure_before(self.roles.student(bare, name), teacher, batches)
        student = self.roles.student(self.add_adapter(bare, total), name)
        if earlier is None and continues:  # what the student was before is its adapter's work too
            self.measure_before(student, teacher, batches)
        optimizer = make_optimizer(student.module, plugins, recipe.train.learning_rate)
        schedule = make_schedule(optimizer, recipe.train, total)
        if earlier is not None:
            checkpoint.load(earlier, student.module, optimizer, schedule, plugins, self.world.rank)
        first = self.state.step
        if not recipe.data.packing and any(
            model and model.layout == "padded" for model in (student, teacher and teacher.model)
        ):
            sampler = replace(sampler, lengths=self.parts.corpus.row_lengths)
        config = self.loop_config(student, teacher, sampler, total, optimizer, schedule)
        events = self.loop_events(config, batches)
        self.progress.started(total, first)
        with self.stop.deferring():
            done = first if self.state.stopped_early else distil(config, events, first)
            stopped = self.stop_asked()  # a signal may have reached one rank after the loop polled for the last time
        if stopped or done < (self.state.stopped_early or total):
            signal = self.stop.signal or 15
            raise Interrupted(signal, f"stopped by a signal after step {done} of {total}; go on with --resume")
        return self.finish(student, teacher, batches, done)

    def loop_config(
        self, student: LanguageModel, teacher: Teacher | None, sampler: BatchSampler, total: int,
        optimizer: Optimizer, schedule: LRScheduler,
    ) -> LoopConfig:  # fmt: skip
        """Return everything the loop reads."""
        recipe, plugins = self.checked.recipe, self.checked.plugins
        return LoopConfig(
            student=student,
            teacher=teacher,
            losses=make_losses(plugins),
            references=make_losses(self.checked.references),
            weights=self.weights(),
            plugins=plugins,
            corpus=self.parts.corpus,
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
        """Return what the loop calls: metrics, checkpoints and evaluations of this run."""
        student, varies = config.student, any(weight.varies for weight in config.weights.values())
        return LoopEvents(
            metrics=Metrics(varies, self.write_lines, self.world.gather, self.parts.corpus.report.named),
            on_calibrated=self.note_weights,
            save=lambda step: self.save_checkpoint(step, student.module, config.optimizer, config.schedule),
            evaluate=lambda step: self.judge(
                step, self.stored(f"step-{step}", self.roles.measured(student, config.teacher, batches))
            ),
            stop_requested=self.stop_asked,
        )

    def weights(self) -> dict[str, Weight]:
        """Return each loss's strength; what was calibrated before a resume is not measured again."""
        weights = dict(self.checked.weights)
        for name, value in self.state.weights.items():
            now = checkpoint.as_named_now(name, list(weights))
            weights[now] = weights[now].calibrated(value)
        return weights

    def note_weights(self, weights: dict[str, float]) -> None:
        """Keep calibrated weights for the result and for checkpoints."""
        self.state.weights = weights
        logger.info("calibrated: %s", ", ".join(f"{name} has weight {weight:.6g}" for name, weight in weights.items()))

    def phase(self, text: str) -> None:
        """Say what goes on now, also to the log."""
        logger.debug(text)
        self.progress.phase(text)

    def add_adapter(self, bare: Any, total_steps: int) -> nn.Module:
        """Add the recipe's adapter, with the weights of a stored one if named; what is trainable becomes float32."""
        recipe, plugins = self.checked.recipe, self.checked.plugins
        (name,) = plugins.implements("add_adapter")
        self.phase("adding the adapter")
        torch.manual_seed(derive(recipe.seed, name))
        if recipe.train.gradient_checkpointing:
            enable = getattr(bare, "activation_checkpointing_enable", None)  # its newer name
            (enable or bare.gradient_checkpointing_enable)({"use_reentrant": False})
        weights = list(bare.parameters())
        model = plugins.one(
            "add_adapter",
            model=bare,
            batches=training_batches(self.checked, self.parts.corpus),
            total_steps=total_steps,
            rng=generator(recipe.seed, name),
        )
        if stored := self.parts.base.adapter:
            load_adapter_weights(model, stored, name)
        self.roles.round_frozen(weights)
        return widened(model)

    def measure_before(self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch]) -> None:
        """Measure the student that was not trained, and the teacher."""
        self.phase("evaluating the student before training, and the teacher")
        evaluation, teachers = self.roles.measured_both(student, teacher, batches)
        before = self.stored("before", evaluation)
        of_teacher = {} if teachers is None else self.stored("teacher", teachers)
        if self.criterion is not None:
            self.criterion.value(before)  # a probe's number that is not there is better missed now than in an hour
        prompt = sample_prompt(self.parts)
        sample = Sample(prompt=self.decode(prompt), before=self.continuation(student, prompt))
        self.report_evaluation("before", 0, before)
        self.state.before, self.state.sample = before, sample
        if of_teacher:
            self.report_evaluation("teacher", 0, of_teacher)
            self.state.teacher = of_teacher

    def report_evaluation(self, name: str, step: int, evaluation: EvaluationValues) -> None:
        """Report an evaluation after `step` optimizer steps; `name` is before, teacher, step-N or after."""
        self.trackers.evaluation(step, evaluation, "teacher" if name == "teacher" else "held_out")

    def continuation(self, student: LanguageModel, prompt: list[int], tokens: int = 32) -> str | None:
        """Return how the student goes on, greedily; None where the model cannot generate.

        Virtual tokens are processed again for each token: with a cache of transformers, peft computes them wrongly.
        """
        module: Any = student.module
        if not hasattr(module, "generate"):
            return None
        training = module.training
        module.eval()
        ids = torch.tensor([prompt], device=self.world.device)
        with torch.no_grad(), student.computing(), quiet(), quiet_peft():
            found = module.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                use_cache=not virtual_tokens(module), pad_token_id=student.pad_token_id,
            )  # fmt: skip
        module.train(training)
        return self.decode(found[0, len(prompt) :].tolist())

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return str(self.parts.tokenizer.decode(ids, skip_special_tokens=True))

    def stop_asked(self) -> bool:
        """Return whether any rank received a signal to stop."""
        asked = torch.tensor(int(self.stop.signal is not None), device=self.world.device)
        return bool(self.stop.signal) if self.world.size == 1 else bool(self.world.sum(asked))

    def write_lines(self, lines: list[dict[str, Any]]) -> None:
        """Write lines of metrics, then show them."""
        if not self.world.is_main:
            return
        self.directory.metrics.append(lines)
        for line in lines:
            logger.debug("step %d: loss %.6g, gradient %.4g", line["step"], line["loss"], line["grad_norm"])
            self.progress.step(line)
            self.trackers.step(line)

    def save_checkpoint(self, step: int, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> None:
        """Write a checkpoint on the main process, with what the plugins of all ranks remember."""
        remembered = self.world.gather([checkpoint.pack(self.checked.plugins)])
        if self.world.is_main:
            self.state.step, self.state.seconds = step, monotonic() - self.began
            state, folder = self.state.as_dict(), self.directory.checkpoints
            checkpoint.save(folder, step, model, optimizer, schedule, self.checked.plugins, remembered, state)
            best = self.state.best.step if self.state.best else None
            checkpoint.prune(folder, self.checked.recipe.train.save_total_limit, best)
        self.world.wait()

    def judge(self, step: int, measured: EvaluationValues) -> Verdict:
        """Store an evaluation during training; return whether it is the best so far, and whether training should stop.

        The verdict depends only on the evaluations, which checkpoints carry, so a resumed run gets the same.
        """
        self.state.evaluations = [*self.state.evaluations, self.world.broadcast({"step": step, **measured})]
        self.report_evaluation(f"step-{step}", step, measured)
        logger.info("step %d: %s", step, ", ".join(f"{k} {v:.4g}" for k, v in measured.items() if isinstance(v, float)))
        if self.criterion is None:
            return Verdict(improved=False, enough=False)
        standing = self.criterion.standing(self.state.evaluations)
        self.state.best = standing.best
        patience = self.checked.recipe.evaluate.early_stopping_patience
        enough = patience is not None and standing.waited >= patience
        if enough:
            self.state.stopped_early = step
            logger.info("no better in %d evaluations: training ends", standing.waited)
        return Verdict(improved=standing.best.step == step, enough=enough)

    def finish(self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch], done: int) -> RunResult:
        """Evaluate the trained student, save it, write the result."""
        self.phase("evaluating the student after training")
        after = self.at_its_best(student, teacher, batches, done)
        self.report_evaluation("after", done, after)
        if self.state.sample:
            self.state.sample.after = self.continuation(student, sample_prompt(self.parts))
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
        if self.world.is_main:
            self.phase("saving the student")
            save_student(module, self.checked, self.parts.base, self.parts.tokenizer, self.directory)
        measured["remarks"] = remarks(measured)
        for remark in measured["remarks"]:
            logger.debug(remark)
        self.checked.plugins.each("on_train_end", model=module, result=measured)  # plugins add keys
        result = RunResult(**measured, seconds=monotonic() - self.began)
        if self.world.is_main:
            write_card(self.directory, result)
        self.write(result)
        self.progress.finished(result.as_dict())
        self.world.wait()
        return result

    def at_its_best(
        self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch], done: int
    ) -> EvaluationValues:
        """Evaluate the student; if the recipe says so, restore the weights of the best step and evaluate these."""
        after = self.stored("after", self.roles.measured(student, teacher, batches))
        recipe, folder = self.checked.recipe, self.directory
        if self.criterion is None:
            return after
        evaluations = [*self.state.evaluations, self.world.broadcast({"step": done, **after})]
        best = self.state.best = self.criterion.standing(evaluations).best
        if self.world.is_main:
            checkpoint.prune(folder.checkpoints, recipe.train.save_total_limit, best.step)
        if best.step == done or not recipe.evaluate.load_best_model_at_end:
            return after
        self.phase(f"going back to the best step, {best.step}")
        kept = checkpoint.at(folder.checkpoints, best.step)
        checkpoint.restore(kept, student.module, self.checked.plugins, self.world.rank)
        return self.stored("after", self.roles.measured(student, teacher, batches))

    def stored(self, name: str, evaluation: Evaluation) -> EvaluationValues:
        """Write the sums per document of an evaluation on the main process; return its metrics and probes."""
        if self.world.is_main:
            self.directory.write_evaluation(name, evaluation.documents)
        return evaluation.values

    def write(self, result: RunResult) -> None:
        """Write result.json on the main process."""
        if self.world.is_main:
            self.directory.write_result(result)


def count_parameters(module: Any) -> int:
    """Return how many parameters a model has; transformers knows how many a 4-bit weight holds."""
    count = getattr(module, "num_parameters", None)
    if count is None:
        return sum(int(parameter.numel()) for parameter in module.parameters())
    inside = getattr(count, "__self__", module)  # an adapter may wrap the model that counts
    counted = {id(parameter) for parameter in inside.parameters()}
    return int(count()) + sum(int(p.numel()) for p in module.parameters() if id(p) not in counted)


def sample_prompt(parts: RunInputs, tokens: int = 32) -> list[int]:
    """Return how a held-out document begins: up to its first answer token, or its first few tokens."""
    document = parts.corpus.held_out[0]
    scored = document.loss_mask.nonzero()[0]
    start = int(scored[0]) if len(scored) and scored[0] > 1 else min(tokens, max(1, len(document) // 2))
    return [int(token) for token in document.input_ids[:start]]
