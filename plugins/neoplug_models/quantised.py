"""Base of nf4, fp4 and int8: bitsandbytes quantises linear layers while the model is loaded, on CPU and CUDA.

Embeddings and head are not quantised. Quantised weights are frozen: an adapter is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from neoplug import Problem, RecipeError, Role, UsageError, did_you_mean, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEADS = ("lm_head", "embed_out")  # skipped by default in transformers, but not where a list is given


@dataclass(eq=False)
class Quantised:
    """Options have the names of transformers' BitsAndBytesConfig, without the prefixes `bnb_4bit_` and `llm_int8_`."""

    skip_modules: list[str] = field(default_factory=list)  # names or name endings not to quantise, besides the head

    def quantisation_kwargs(self, **options: Any) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` that quantise."""
        from transformers import BitsAndBytesConfig

        skipped = [*self.skip_modules, *HEADS] if self.skip_modules else None
        return {"quantization_config": BitsAndBytesConfig(llm_int8_skip_modules=skipped, **options)}

    def validate_fit(self, model: PreTrainedModel, role: Role, plugin: str, **wanted: Any) -> None:
        """Refuse what transformers ignores: weights quantised in another way, and `skip_modules` that match nothing."""
        from torch.nn import Linear
        from transformers.quantizers.quantizers_utils import should_convert_module

        stored = model.config.quantization_config.to_dict()
        if other := [f"{name} {stored[name]}" for name, value in wanted.items() if stored[name] != value]:
            raise UsageError(
                f"{model.name_or_path} is stored quantised already, with {', '.join(other)}\n"
                "why: transformers loads it as it is stored, whatever the recipe says\n"
                "fix: name the plugin of that quantisation, or use the unquantised model"
            )
        names = [name for name, module in model.named_modules() if isinstance(module, Linear)]
        for skipped in self.skip_modules:
            if all(should_convert_module(name, [skipped]) for name in names):
                raise RecipeError([_without_effect(skipped, names, (role, "load", plugin, "skip_modules"))])


def _without_effect(skipped: str, layers: list[str], path: tuple[str | int, ...]) -> Problem:
    """Return the problem of a name in `skip_modules` that is no linear layer's."""
    inside = sorted({name.rpartition(".")[2] for name in layers if f".{skipped}." in f".{name}"})
    if inside:
        what, why = f"`{skipped}` names a module that holds layers, and no layer", "layers inside it are quantised"
        return Problem(what, why, f"name the layers in it: {', '.join(inside)}", path)
    ends = sorted({name.rpartition(".")[2] for name in layers})
    what = f"no module is called `{skipped}`{did_you_mean(skipped, ends)}"
    return Problem(what, "only linear layers are quantised", f"name some of {', '.join(ends)}", path)


@dataclass(eq=False)
class FourBits(Quantised):
    """Load linear layers in 4 bits, with one scale per block of 64 weights (QLoRA, arXiv 2305.14314).

    use_double_quant  quantise the scales too, which saves 0.4 bits per weight
    compute_dtype     data type of the products; by default bfloat16 where the device computes it natively, else float32
    """

    quant_type: ClassVar[str]
    use_double_quant: bool = True
    compute_dtype: Literal["float32", "bfloat16"] | None = None

    @hookimpl
    def load_kwargs(self) -> dict[str, Any]:
        """Return the configuration that quantises while loading."""
        return self.quantisation_kwargs(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.use_double_quant,
            bnb_4bit_compute_dtype=self.compute_dtype or "float32",
        )

    @hookimpl
    def after_load(self, model: PreTrainedModel, role: Role) -> None:
        """Set the compute dtype of each layer, and switch off a repacking that loses gradients on some CPUs."""
        from bitsandbytes.nn import Linear4bit

        from neoplug import resolve_dtype

        self.validate_fit(model, role, self.quant_type, load_in_4bit=True, bnb_4bit_quant_type=self.quant_type)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.compute_dtype = resolve_dtype(self.compute_dtype, module.weight.device)
                module.compute_type_is_set = True
                # After an evaluation forward on a CPU with AVX512-BF16 the layer packs its weight for a matmul that has
                # no input gradient: parameters below it get gradients of 0, without an error (bitsandbytes 0.50).
                module.support_avx512bf16_for_cpu = False
