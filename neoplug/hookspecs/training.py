"""Hooks of a training step.

N answer tokens, V shared vocabulary; the package has the run in pseudocode and the legend of all hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from neoplug.answers.rules import answers, returns, version_added
from neoplug.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Generator, Tensor

    from neoplug.data.batch import Batch, Document

SPARSE_ARGUMENTS = ("student", "ids", "probabilities", "rest", "teacher_entropy", "labels")


@hookspec
@answers("exactly one")
@returns("number")
@version_added("0.1")
def rate(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the learning rate of a step as a multiple of each parameter group's own, which is its largest as a rule.

    step          0 for the first optimizer step; the last call of a run is for `total_steps`, a step that is not made
    total_steps   optimizer steps of the whole run
    warmup_steps  `train.warmup_steps`, in steps; a schedule without a warm-up does not take the argument
    returns       finite, at least 0, and the same for the same arguments: a resumed run asks only for its own steps
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("documents")
@version_added("0.1")
def edit_documents(documents: Sequence[Document], progress: float, rng: Generator) -> Sequence[Document]:
    """Return the documents of a training row as the models are to read them: changed, fewer, or none.

    Places of answer tokens, labels, the teacher's texts and what token weights count follow from the documents.

    documents  of one row: one, or those that are packed together. Each is a `neoplug.Document`, which
               `dataclasses.replace` copies with changes: `input_ids` and `loss_mask` are the student's text, and
               `teacher_ids` and `teacher_loss_mask`, where they are not None, what the teacher reads in its place
    progress   0.0 at the first optimizer step, 1.0 at the last
    rng        seeded by (seed, plugin name, step, row), so draws depend neither on ranks nor on micro-batches, and a
               resumed run draws the same numbers
    returns    documents with as many answer tokens in the teacher's text as in the student's, of tokens that the models
               share, none longer than the longest of the training data
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("edited batch")
@version_added("0.1")
def edit_batch(batch: Batch, progress: float, rng: Generator) -> None:
    """Change the batch of a training row in place, on the CPU, before the forward passes of teacher and student.

    Rows are edited one by one and joined to micro-batches afterwards, so neither the size of a micro-batch nor the
    number of ranks changes what becomes of a row.

    batch     a `neoplug.Batch` of one row, with packing of several documents: `labels` [N] and `input_ids` [T] may be
              rewritten; shortening `positions`, `labels` and `rows` together drops answer tokens from the objective.
              Tokens are those that the models share, and with token weights documents keep their lengths and answer
              tokens their positions
    progress  0.0 at the first optimizer step, 1.0 at the last
    rng       seeded by (seed, plugin name, step, row), so draws depend neither on ranks nor on micro-batches, and a
              resumed run draws the same numbers
    """
    raise NotImplementedError


@hookspec
@answers("each loss")
@returns("tensor", shapes=("N",), gradient=True, read_only=("student", "teacher", "labels"))
@version_added("0.1")
def token_loss(student: Tensor, teacher: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Return the loss of each token. Called for each chunk of answer tokens, several times a step.

    student   [N, V] float32 log-probabilities at temperature 1, with gradient
    teacher   [N, V] float32 log-probabilities without gradient, read-only
    labels    [N] int64; masked positions are already removed
    progress  0.0 at the first optimizer step, 1.0 at the last
    returns   [N] float32 nats, finite, with a gradient to `student`, without mean, mask, shift or weight: the loop
              applies these to all losses alike
    """
    raise NotImplementedError


@hookspec
@answers("each loss")
@returns("tensors", shapes=("N", "N V"), read_only=("student", "teacher", "labels"))
@version_added("0.1")
def token_gradient(student: Tensor, teacher: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """Return the loss of each token and its closed-form gradient. Optional next to `token_loss`; faster than autograd.

    Called under `torch.no_grad`.

    student, teacher, labels, progress   as for `token_loss`, but without gradient
    returns   [N] the loss and [N, V] its gradient with respect to the student's *logits* (not log-probabilities)
    """
    raise NotImplementedError


@hookspec
@answers("each loss")
@returns("tensor", shapes=("N",), gradient=True, read_only=SPARSE_ARGUMENTS)
@version_added("0.1")
def token_loss_sparse(
    student: Tensor, ids: Tensor, probabilities: Tensor, rest: Tensor | None, teacher_entropy: Tensor, labels: Tensor,
    progress: float,
) -> Tensor:  # fmt: skip
    """Return the loss of each token where a few entries of the teacher's distribution are known.

    Called in place of `token_loss` where the recipe's `teacher.cache` stores entries. A loss implements it if its
    `reads_teacher` is "linear" (its gradient is linear in the teacher's probabilities) or "buckets" (it can be computed
    from the probabilities of some tokens and the mass of all others, as one bucket).

    student, labels, progress   as for `token_loss`
    ids              [N, K] int64: columns of `student`, the teacher's most probable token first
    probabilities    [N, K] float32: the teacher's, 0 where a token has fewer than K entries
    rest             [N] float32: the mass of all tokens without an entry, which no loss but a "linear" one can do
                     without. None: the entries are sampled; they add up to 1, and their expectation is the teacher's
                     distribution, but an id may occur twice, and a probability may be negative
    teacher_entropy  [N] float32 nats, of the whole distribution
    returns          as for `token_loss`; of sampled entries a value may be negative
    """
    raise NotImplementedError


@hookspec
@answers("each loss")
@returns("tensors", shapes=("N", "N V"), read_only=SPARSE_ARGUMENTS)
@version_added("0.1")
def token_gradient_sparse(
    student: Tensor, ids: Tensor, probabilities: Tensor, rest: Tensor | None, teacher_entropy: Tensor, labels: Tensor,
    progress: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the loss of each token and its closed-form gradient. Optional next to `token_loss_sparse`.

    student, ids, probabilities, rest, teacher_entropy, labels, progress   as for `token_loss_sparse`
    returns   as for `token_gradient`
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("tensor", shapes=("N",), read_only=("student", "teacher", "teacher_entropy", "labels"))
@version_added("0.1")
def token_weight(
    student: Tensor, teacher: Tensor, teacher_entropy: Tensor, labels: Tensor, position: Tensor, progress: float
) -> Tensor:
    """Return the weight of each answer token. Weights of several plugins are multiplied; `torch.no_grad` is on.

    A weight multiplies the loss and gradient of its token, for all losses alike. The loop still divides by the number
    of answer tokens, so weights whose mean is not 1 change the size of the step; `loss` and `losses` of the metrics are
    weighted.

    student, teacher, labels, progress   as for `token_loss`, but without gradient and read-only
    teacher_entropy  [N] float32 nats; unlike `teacher`, it is known with every `teacher.cache`
    position  [N] int64, 0 for the first token of its answer. An answer is a maximal run of answer tokens: an
              assistant's turn with its end token, or with `train_on: all` the document. Dropping or rewriting labels
              does not change positions; those of a window of a long document start at the window
    returns   [N] float32, finite and at least 0; any other value ends the run at the next log line
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("scalar", gradient=True)
@version_added("0.1")
def penalty(model: torch.nn.Module, progress: float) -> Tensor:
    """Return a scalar, with gradient, that is added to the loss once an optimizer step; logged separately from `loss`.

    model     returned by `add_adapter`
    progress  0.0 at the first optimizer step, 1.0 at the last
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("numbers")
@version_added("0.1")
def on_step_end(
    step: int, progress: float, model: torch.nn.Module, metrics: dict[str, Any], name: str
) -> dict[str, Any] | None:
    """Called after each optimizer step, before gradients are set to zero.

    step      1 after the first optimizer step
    progress  that of this step's losses: 0.0 at the first optimizer step, 1.0 at the last
    model     returned by `add_adapter`
    metrics   of this step: `step`, `counts` [2] int64 (answer tokens, tokens), `sums` [K] float32 nats summed over
              answer tokens in the order of the losses' names, `losses` {name: nats per answer token}, `grad_norm`,
              `penalty`; tensors are on the device that computed them, and reading one on the host synchronises
    name      of this plugin in the recipe, which is a loss's key in `losses`
    returns   further metrics for this step's line (numbers or scalar tensors), or None
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("reason")
@version_added("0.1")
def should_stop(step: int, metrics: dict[str, Any], measured: dict[str, Any] | None) -> str | None:
    """Return why training is to end now; None: it goes on. Called on the host, outside of the step.

    Called for each line of metrics.jsonl in its order, when lines are written, and after each evaluation during
    training, on every rank. Lines of ranks differ in `seconds`, `tokens_per_second` and `peak_memory_bytes` only; a
    reason on any rank ends all of them at the same step. Training then ends as after the last step: a checkpoint is
    saved, and the student evaluated and saved. What the next answer depends on belongs into `state_dict`.

    step      of the line, or of the evaluation: optimizer steps done
    metrics   a copy of the line, with all its keys; of an evaluation, that of the last line before it. As in the file,
              None stands in place of what is not finite: a metric of a plugin, since training ends at such a loss
    measured  a copy of the evaluation that was just made, its metrics and `probes`, likewise; None where a line was
              written
    returns   a sentence for the result's `stop_reason`, or None
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("nothing")
@version_added("0.1")
def on_log(line: dict[str, Any]) -> None:
    """Record a line of metrics.jsonl. Called on the main process for each line in its order, when lines are written.

    A resumed run repeats the steps after its checkpoint, and their lines.

    line  a copy of the line: `step`, optimizer steps done, and nested maps as `losses`; None in place of what is not
          finite
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("nothing")
@version_added("0.1")
def on_measured(step: int, measured: dict[str, Any], whose: Literal["student", "teacher"]) -> None:
    """Record an evaluation. Called on the main process after each, that before training included.

    step      optimizer steps done, 0 before training
    measured  a copy of its metrics and `probes`, as result.json has them: without a teacher, and of the teacher, there
              are fewer metrics
    whose     which model was measured
    """
    raise NotImplementedError
