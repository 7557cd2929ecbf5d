"""Conformance tests of preparations of the student, on a random Llama of four layers.

from neoplug.testing import check_prepare

def test_mine():
    check_prepare(Mine())
"""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import torch

from neoplug.data.batch import Batch
from neoplug.models.quiet import quiet
from neoplug.testing.families import configuration, random_model
from neoplug.testing.hooks import answer, global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, Kit, check_close, properties_of
from neoplug.testing.small_model import SIZES, SmallModel

LAYERS = 4


def check_prepare(preparation: Any) -> None:
    """Test every property of preparations of the student.

    Raises AssertionError for a property that does not hold.
    """
    PREPARATION.hold(preparation, 0)


class PreparationProperties:
    """The properties of preparations: each method without underscore, which raises Broken where it does not hold."""

    def __init__(self) -> None:
        self._text = SmallModel(None)

    def computes(self, preparation: Any) -> None:
        """The prepared student computes finite logits of the whole vocabulary."""
        logits = self._text.logits(self._prepared(preparation))
        if logits.shape[-1] != configuration("llama").vocab_size or not logits.isfinite().all():
            raise Broken(f"its logits are of the shape {list(logits.shape)}, or not finite")

    def saved(self, preparation: Any) -> None:
        """Saved and loaded by its configuration, the prepared student computes the same."""
        from transformers import AutoModelForCausalLM

        model = self._prepared(preparation)
        with TemporaryDirectory() as folder, quiet():
            model.save_pretrained(folder)
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        check_close(
            self._text.logits(loaded), self._text.logits(model), "the logits of the stored student", tolerance=1e-5
        )

    def repeated(self, preparation: Any) -> None:
        """The same generator and batches give the same student."""
        students = []
        for number in range(2):
            with global_seeds(number):
                students.append(self._prepared(preparation).state_dict())
        first, again = students
        if first.keys() != again.keys() or any(not torch.equal(first[name], again[name]) for name in first):
            raise Broken("the same generator and batches give another student: it draws from elsewhere")

    def planned(self, preparation: Any) -> None:
        """On the meta device, without data, it makes a student of the same shapes, as a plan needs."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(configuration("llama", **SIZES, num_hidden_layers=LAYERS))
        answer(preparation, "prepare_student", model=skeleton, batches=None, rng=torch.Generator().manual_seed(0))
        planned, real = (
            {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
            for model in (skeleton, self._prepared(preparation))
        )
        if planned != real:
            name = min(name for name in planned.keys() | real.keys() if planned.get(name) != real.get(name))
            raise Broken(f"`{name}` has the shape {planned.get(name)} in a plan and {real.get(name)} in a run")

    def _prepared(self, preparation: Any) -> Any:
        """Return a student after the preparation.

        Raises TypeError where the plugin has no `prepare_student`.
        """
        if hook(preparation, "prepare_student") is None:
            raise TypeError(f"{type(preparation).__name__} has no `prepare_student`")
        model = random_model("llama", seed=1, **SIZES, num_hidden_layers=LAYERS)
        rng = torch.Generator().manual_seed(0)
        answer(preparation, "prepare_student", model=model, batches=self._batches(), rng=rng)
        return model

    def _batches(self) -> Iterator[Batch]:
        """Yield batches without end, as a run gives them."""
        while True:
            yield from self._text.batches


PREPARATION = Kit("preparation", {}, once=properties_of(PreparationProperties()))
