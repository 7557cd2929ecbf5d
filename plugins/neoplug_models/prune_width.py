"""Width pruning: the least important attention heads, MLP channels or hidden channels are removed (Minitron, arXiv
2407.14679). Nothing is trained here: the distillation does that.

Importance is measured on the recipe's training data, in its order (see `width_importance`):

    heads     how much a head adds to the residual stream, in each layer; a key-value head goes with its query heads
    channels  how much a channel of the MLP adds to it, in each layer
    hidden    the size of what the norms return, summed over all norms; one choice for the whole model

The remaining weights do not change, with one exception: with H' of H hidden channels left, the norms' gains are
multiplied by sqrt(H / H'), since an RMS norm divides by the mean over channels. So the removal of channels that are
always 0 is exact.

Supported are decoders whose attention is `q_proj, k_proj, v_proj, o_proj` and whose MLP is `gate_proj, up_proj,
down_proj` (Llama, Mistral, Qwen 2 and 3, Granite, SmolLM3, ...). Anything else whose shape would have to change is
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from neoplug import Problem, RecipeError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from neoplug import Batch
    from neoplug_models.width_cut import Kept, Width
    from neoplug_models.width_importance import Measured

SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size")


@dataclass(eq=False)
class PruneWidth:
    """Remove the least important heads and channels; give at least one size, each below the model's.

    num_attention_heads  query heads per layer, the same number for each key-value head; their dimension stays
    num_key_value_heads  key-value heads per layer; one is removed with its query heads. By default as many as the
                         model has, or one per query head if the model has no groups
    intermediate_size    channels of each MLP
    hidden_size          channels of the residual stream
    calibration_tokens   tokens of training data that importance is measured on
    """

    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    hidden_size: int | None = None
    calibration_tokens: int = 4096

    def __post_init__(self) -> None:
        wanted = {name: value for name in SIZES if (value := getattr(self, name)) is not None}
        if not wanted:
            raise ValueError(f"give at least one of {', '.join(SIZES)}")
        for name, value in {**wanted, "calibration_tokens": self.calibration_tokens}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")

    @hookimpl
    def prepare_student(self, model: PreTrainedModel, batches: Iterable[Batch] | None) -> None:
        """Remove the least important heads and channels; without batches to measure on, the last ones.

        Raises RecipeError where a size does not fit the model, or the model's structure is not supported.
        """
        from neoplug_models.width_cut import cut, mismatch, norms

        before = _width(model)
        after = self._after(before)
        target = _rebuilt(model, before, after)
        if why := mismatch(model, target, before, after):
            raise _unknown(model, why)
        narrower = before.hidden_size / after.hidden_size
        if narrower > 1:
            _validate_norms(model)
        cut(model, target, before, self._kept(model, before, after, batches))
        for norm in norms(model).values() if narrower > 1 else ():
            norm.get_parameter("weight").data *= narrower**0.5
        _resize(model.config.get_text_config(), before, after)

    def _after(self, before: Width) -> Width:
        """Return the sizes of the pruned model. Raises RecipeError with each one that does not fit the model."""
        problems = []
        for name in SIZES:
            wanted, present = getattr(self, name), getattr(before, name)
            if wanted is not None and wanted >= present:
                what, fix = (
                    f"{name} is {wanted}, but the model has {present}",
                    "choose a smaller number, or leave it out",
                )
                problems.append(_problem(what, fix, name))
        heads, groups = self._heads(before)
        option = "num_key_value_heads" if self.num_attention_heads is None else "num_attention_heads"
        most = before.num_attention_heads // before.num_key_value_heads
        if not problems and (heads % groups or heads // groups > most):
            what = f"{heads} query heads cannot be divided among {groups} key-value heads"
            why = f"each has the same number, at most {most} as in the model"
            fix = f"choose {' or '.join(str(groups * size) for size in range(max(1, most - 2), most + 1))} query heads"
            problems.append(_problem(what, fix, option, why=why))
        if problems:
            raise RecipeError(problems)
        others = {name: getattr(self, name) or getattr(before, name) for name in SIZES[2:]}
        return replace(before, num_attention_heads=heads, num_key_value_heads=groups, **others)

    def _heads(self, before: Width) -> tuple[int, int]:
        """Return the numbers of query heads and key-value heads to keep."""
        each = before.num_attention_heads // before.num_key_value_heads
        wanted = self.num_attention_heads
        groups = self.num_key_value_heads or (wanted if wanted and each == 1 else before.num_key_value_heads)
        return wanted or groups * each, groups

    def _kept(self, model: PreTrainedModel, before: Width, after: Width, batches: Iterable[Batch] | None) -> Kept:
        """Return the indices to keep in each dimension that shrinks."""
        import torch

        from neoplug_models.calibration import documents
        from neoplug_models.width_cut import attentions, mlps, norms
        from neoplug_models.width_importance import heads_to_keep, importance, most_important

        measured = dict(_to_measure(model, before, after))
        if batches is None:
            scores = {path: torch.zeros(part.parts) for path, part in measured.items()}
        else:
            scores = importance(model, measured, documents(batches, self.calibration_tokens))
        kept: dict[str, dict[str, Tensor]] = {}
        for path in attentions(model).keys() & scores.keys():
            heads, groups = heads_to_keep(
                scores[path], before.num_key_value_heads, after.num_attention_heads, after.num_key_value_heads
            )
            kept[path] = {"query": _numbers(heads, before.head_dim), "key": _numbers(groups, before.head_dim)}
        for path in mlps(model).keys() & scores.keys():
            kept[path] = {"channel": most_important(scores[path], after.intermediate_size)}
        if norm_scores := [scores[path] for path in norms(model) if path in scores]:
            kept[""] = {"hidden": most_important(torch.stack(norm_scores).sum(0), after.hidden_size)}
        return kept


def _to_measure(model: PreTrainedModel, before: Width, after: Width) -> Iterator[tuple[str, Measured]]:
    """Yield (path, what to measure there) for each module whose heads or channels are removed."""
    from neoplug_models.width_cut import attentions, mlps, norms
    from neoplug_models.width_importance import Measured

    if after.num_attention_heads < before.num_attention_heads:
        for path, attention in attentions(model).items():
            yield path, Measured(attention.get_submodule("o_proj"), "input", before.num_attention_heads)
    if after.intermediate_size < before.intermediate_size:
        for path, mlp in mlps(model).items():
            yield path, Measured(mlp.get_submodule("down_proj"), "input", before.intermediate_size)
    if after.hidden_size < before.hidden_size:
        for path, norm in norms(model).items():
            yield path, Measured(norm, "output", before.hidden_size)


def _numbers(heads: Tensor, head_dim: int) -> Tensor:
    """Return the channels of these heads: head h has h head_dim to (h + 1) head_dim - 1."""
    import torch

    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _width(model: PreTrainedModel) -> Width:
    """Return the sizes of the model. Raises RecipeError where its configuration lacks one."""
    from neoplug_models.width_cut import Width

    try:
        width = Width.of(model.config.get_text_config())
    except AttributeError as error:
        raise _unknown(model, f"its configuration lacks a size: {error}") from error
    if odd := [name for name, value in asdict(width).items() if not isinstance(value, int)]:
        raise _unknown(model, f"its `{odd[0]}` is no single number")
    return width


def _resize(config: PretrainedConfig, before: Width, after: Width) -> None:
    """Set the sizes that change, and `head_dim`, which would otherwise follow from the others."""
    for name, value in asdict(after).items():
        if value != getattr(before, name) or name == "head_dim":
            setattr(config, name, value)


def _rebuilt(model: PreTrainedModel, before: Width, after: Width) -> PreTrainedModel:
    """Return the model that the smaller configuration describes, on the meta device, rebuilt as loading does."""
    from neoplug import meta_model, reload_config

    config = deepcopy(model.config)
    try:
        _resize(config.get_text_config(), before, after)
        return meta_model(reload_config(config))
    except Exception as error:
        raise _unknown(model, f"the smaller configuration is not valid: {' '.join(str(error).split())}") from error


def _validate_norms(model: PreTrainedModel) -> None:
    """Refuse norms that are not x / rms(x) * weight, judged by name and, if there are weights, by evaluation."""
    import torch

    from neoplug_models.width_cut import norms

    known = set(norms(model).values())
    for module in model.modules():
        kind = type(module).__name__
        odd = "Norm" in kind and "RMSNorm" not in kind
        if module in known and not (gain := module.get_parameter("weight")).is_meta:
            odd |= not torch.allclose(module(torch.ones_like(gain)), gain, rtol=1e-3)
        if odd:
            raise _unknown(model, f"`hidden_size` cannot change under its {kind}")


def _problem(what: str, fix: str, *option: str, why: str = "") -> Problem:
    return Problem(what, why, fix, ("student", "prepare", "prune_width", *option))


def _unknown(model: PreTrainedModel, why: str) -> RecipeError:
    what = f"{type(model).__name__} cannot be pruned in this way"
    return RecipeError([_problem(what, "choose other sizes, or name `prune_depth`", why=why)])
