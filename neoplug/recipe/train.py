"""The section `train` of a recipe."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from neoplug.recipe.section import Positive, Section, Text


class Train(Section):
    """The training loop. Without `max_steps` and `num_train_epochs` it runs one epoch.

    `lr_scheduler_type`: the plugin that sets the learning rate, without options; the section `schedule` names one with
    options. None: that of `schedule`, else `cosine`. `constant` has no warm-up.

    `per_device_train_batch_size`: rows of a micro-batch. `auto` takes as many as fit the device's memory, and
    `gradient_accumulation_steps` must then be set: it is the number of rows of an optimizer step on each device, which
    does not change. The run's recipe.yaml has the numbers that were chosen.

    `log_gradient_norms`: at logging steps, the gradient norm of each loss alone; takes one more forward pass, and one
    backward pass a loss.

    `ddp_timeout`: seconds in which all processes of a run must take part in what they compute together; where one does
    not, the others end.

    `shard`: what is divided over the processes of `torchrun`: `base`, the frozen weights of both models' layers;
    `full`, the trained weights of the student too, for full fine-tuning. A resumed run may have another value.

    `full_determinism`: only algorithms that give the same values each time, which may be slower on a GPU; an operator
    that has none ends the run.
    """

    max_steps: Annotated[int, Field(ge=1, le=10**15)] | None = None
    num_train_epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    per_device_train_batch_size: Positive | Literal["auto"] = 4
    gradient_accumulation_steps: Positive = 1
    lr_scheduler_type: Text | None = None
    warmup_steps: Annotated[float, Field(ge=0)] = 0.1
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    gradient_checkpointing: bool = False
    shard: Literal["none", "base", "full"] = "none"
    logging_steps: Positive = 10
    log_gradient_norms: bool = False
    save_steps: Positive = 500
    save_total_limit: Positive | None = None
    ddp_timeout: Positive = 1800
    full_determinism: bool = False

    @field_validator("warmup_steps")
    @classmethod
    def _share_or_steps(cls, warmup_steps: float) -> float:
        if warmup_steps > 1 and not warmup_steps.is_integer():
            raise ValueError(f"`warmup_steps` is {warmup_steps}, but above 1 it is a whole number of steps")
        return warmup_steps

    @model_validator(mode="after")
    def _rows_of_a_step(self) -> Self:
        if self.per_device_train_batch_size == "auto" and "gradient_accumulation_steps" not in self.model_fields_set:
            what = "`per_device_train_batch_size` is auto, so `gradient_accumulation_steps` must be set"
            raise ValueError(f"{what}: it is then the number of rows of a step on each device")
        return self

    @property
    def micro_batch(self) -> int:
        """The rows of a micro-batch; with `auto` one, which leaves the rows of a step as they are."""
        size = self.per_device_train_batch_size
        return 1 if size == "auto" else size

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lengths = [name for name in ("max_steps", "num_train_epochs") if values.get(name) is not None]
        if len(lengths) == 2:
            raise ValueError("`max_steps` and `num_train_epochs` both set how long to train; keep one")
        return values if lengths else {**values, "num_train_epochs": 1.0}
