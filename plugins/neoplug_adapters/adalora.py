"""AdaLoRA: each target has a change B diag(E) A; the least important entries of E of all targets are set to 0.

    W + lora_alpha / init_r  B diag(E) A;  objective + orth_reg_weight mean ||X X^T - 1||_F over X = all A and B^T

For tinit steps all ranks train. Then the mean rank of a target falls from init_r to target_r by a cubic schedule; in
the last tfinal steps only the remaining ranks train. Importance is |weight x gradient|, smoothed.
Source: Zhang et al. 2023, arXiv 2303.10512.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from neoplug import AdapterTraits, Problem, RecipeError, hookimpl
from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Batch

ALLOCATOR_STATE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # attributes that peft's allocator updates at each step


@dataclass(eq=False)
class AdaLoRA(Tuner):
    """LoRA whose ranks are chosen for each target during training (peft's AdaLoRA)."""

    name: ClassVar[str] = "adalora"
    config: ClassVar[str] = "AdaLoraConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="init_r")
    positive: ClassVar[tuple[str, ...]] = ("target_r", "init_r", "lora_alpha", "deltaT", "beta1", "beta2")
    shares: ClassVar[tuple[str, ...]] = ("lora_dropout", "beta1", "beta2")

    target_r: int = 8  # the rank of a target at the end, on average
    init_r: int = 12  # the rank of each target at the start, above target_r
    lora_alpha: int = 16  # scale is lora_alpha / init_r
    lora_dropout: float = 0.0  # in [0, 1), on what A reads
    tinit: int | None = None  # steps before ranks fall; left out: a tenth of the run
    tfinal: int | None = None  # steps after the last choice of ranks; left out: half of the run
    deltaT: int | None = None  # steps between choices of ranks; left out: a hundredth of the run
    beta1: float = 0.85  # smoothing of importance, in (0, 1)
    beta2: float = 0.85  # smoothing of its uncertainty, in (0, 1)
    orth_reg_weight: float = 0.5  # weight of the penalty, 0 or more

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_r <= self.target_r:
            raise ValueError(f"init_r is {self.init_r}, but must be above target_r, {self.target_r}: ranks only fall")
        for name in ("tinit", "tfinal", "orth_reg_weight"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0 or more")

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        tinit = total_steps // 10 if self.tinit is None else self.tinit
        tfinal = max(0, min(total_steps // 2, total_steps - 2)) if self.tfinal is None else self.tfinal
        if total_steps - tfinal < 2 or tinit >= total_steps - tfinal:
            what = f"a run of {total_steps} steps has none left to choose ranks in, after tinit and before tfinal"
            raise RecipeError(
                [Problem(what, fix="2 steps or more, tinit + tfinal below them", path=("adapter", self.name))]
            )
        interval = self.deltaT or max(1, total_steps // 100)
        return {"total_step": total_steps, "tinit": tinit, "tfinal": tfinal, "deltaT": interval}

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        self._adapted: Any = super()._adapt(model, config, batches)
        for name, weight in self._adapted.named_parameters():
            if ".ranknum." in name:  # the number of ranks, a divisor: peft would train it on 4 and 8 bits
                weight.requires_grad_(False)
        return self._adapted

    @hookimpl
    def penalty(self, model: torch.nn.Module) -> torch.Tensor:
        """Return the weighted distance of A's rows and B's columns from orthonormal ones."""
        parameters = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        rows: list[torch.Tensor] = [weight for name, weight in parameters if ".lora_A." in name]
        rows += [weight.T for name, weight in parameters if ".lora_B." in name]
        norms = [(row @ row.T - torch.eye(len(row), device=row.device)).norm() for row in rows]
        return self.orth_reg_weight * torch.stack(norms).mean()

    @hookimpl
    def on_step_end(self, step: int, model: Any) -> None:
        """Update the importance of ranks and, every deltaT steps, choose among them."""
        model.base_model.update_and_allocate(step)

    @hookimpl
    def save_adapter(self, model: Any, path: Path) -> None:
        """Save it as peft does, without peft's warning about the empty matrices of targets with no rank left."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* have invalid shape", UserWarning)
            model.save_pretrained(path)

    def state_dict(self) -> dict[str, Any]:
        """Return the importance of each weight, and the chosen ranks."""
        allocator = self._adapted.base_model.rankallocator
        state = {name: dict(getattr(allocator, name)) for name in ALLOCATOR_STATE}
        return state | {"rank_pattern": self._adapted.peft_config["default"].rank_pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the importance and the chosen ranks."""
        allocator, device = self._adapted.base_model.rankallocator, self._adapted.device
        for name in ALLOCATOR_STATE:
            setattr(allocator, name, {weight: score.to(device) for weight, score in state[name].items()})
        self._adapted.peft_config["default"].rank_pattern = state["rank_pattern"]
