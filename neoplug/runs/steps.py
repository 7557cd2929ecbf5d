"""The steps of a run: how many there are, the rows of each, and the losses that they minimise."""

from collections.abc import Iterator, Mapping
from itertools import count
from math import ceil

from neoplug.data import BatchSampler, Corpus
from neoplug.data.batch import Batch, collate
from neoplug.models.language_model import LanguageModel
from neoplug.recipe import ResolvedRecipe, Train
from neoplug.recipe.loss_weights import Weight
from neoplug.registry import Plugins
from neoplug.registry.teacher_reads import reads_teacher
from neoplug.training.checkpoint import current_name
from neoplug.training.fusion import fuse
from neoplug.training.objective import Loss


def make_sampler(checked: ResolvedRecipe, corpus: Corpus, world: int) -> BatchSampler:
    """Return the sampler that draws the rows of each step, for `world` processes."""
    train, mixture = checked.recipe.train, corpus.mixture
    rows = len(corpus.rows) if mixture is None else sum(mixture.epoch_rows)
    batch, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    return BatchSampler(rows, batch, accumulation, world, checked.recipe.seed, mixture=mixture)


def training_batches(checked: ResolvedRecipe, corpus: Corpus) -> Iterator[Batch]:
    """Yield training micro-batches in the recipe's order, without end, for hooks that take `batches`."""
    sampler = make_sampler(checked, corpus, 1)
    for step in count():
        for rows in sampler.micro_batches(step, 0):
            yield collate([document for row in rows for document in corpus.rows[row]])


def count_steps(train: Train, steps_per_epoch: int) -> int:
    """Return how many optimizer steps a run has."""
    return train.max_steps or ceil((train.num_train_epochs or 1) * steps_per_epoch)


def restored_weights(weights: Mapping[str, Weight], measured: Mapping[str, float]) -> dict[str, Weight]:
    """Return each loss's weight, of which `measured` were calibrated before a resume."""
    restored = dict(weights)
    for name, value in measured.items():
        now = current_name(name, list(restored))
        restored[now] = restored[now].calibrated(value)
    return restored


def make_losses(plugins: Plugins, reads_entries: bool = False, student: LanguageModel | None = None) -> list[Loss]:
    """Return the losses among the plugins, sorted by name, with weight 1; the loop sets the weights at each step.

    reads_entries  whether the teacher's signal has entries and no logits: losses that read the teacher then do so by
                   `token_loss_sparse`
    student        whose logits they read, to compute them in one kernel if that is possible on its device; None: by
                   their hooks
    """
    values = plugins.functions("token_loss", section="loss")
    gradients = plugins.functions("token_gradient", section="loss")
    if reads_entries:
        reading = {name for name, loss in plugins.section("loss").items() if reads_teacher(loss) != "nothing"}
        gradients = {name: gradient for name, gradient in gradients.items() if name not in reading}
        values |= plugins.functions("token_loss_sparse", section="loss")
        gradients |= plugins.functions("token_gradient_sparse", section="loss")
    losses = [Loss(name, 1.0, value, gradients.get(name)) for name, value in sorted(values.items())]
    if student is None or reads_entries:
        return losses
    return fuse(losses, plugins.section("loss"), student.head.vocabulary.size, student.device)
