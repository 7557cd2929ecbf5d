"""LoRAs in peft's file format, restricted to what other readers support: one rank and scale, linear layers, no biases.

adapter_model.safetensors   base_model.model.NAME.lora_A.weight [R, I], base_model.model.NAME.lora_B.weight [O, R]
adapter_config.json         lora_alpha = r, so that the change is B A
export.json                 the error of the approximation, layer by layer
README.md                   a model card: the error, and how to load it
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from neoplug.export.low_rank import Fidelity, Layer
from neoplug.models.reference import ResolvedModel

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # accepted values of --max-lora-rank


def write_folder(
    path: Path,
    matrices: Mapping[str, tuple[Tensor, Tensor]],
    fidelity: Fidelity,
    base: nn.Module,
    layers: Mapping[str, Layer],
    located: ResolvedModel,
) -> None:
    """Write B [O, R] and A [R, I] of each layer of `base`, with their `fidelity`, to the folder `path`."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    tensors = {}
    for name, (up, down) in matrices.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.contiguous()
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(
        r=fidelity.rank,
        lora_alpha=fidelity.rank,
        target_modules=_targets(base, set(matrices)),
        fan_in_fan_out=any(layer.transposed for layer in layers.values()),
        base_model_name_or_path=located.path if located.revision else str(Path(located.path).absolute()),
        revision=located.revision,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(path)
    (path / "export.json").write_text(_record(fidelity), encoding="utf-8")
    (path / "README.md").write_text(_model_card(fidelity, located), encoding="utf-8")


def _targets(base: nn.Module, names: set[str]) -> list[str]:
    """Return peft's `target_modules`: the last parts of the names if no other module has them, else the full names."""
    ends = {name.rpartition(".")[2] for name in names}
    matched = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if matched == names else names)


def _record(fidelity: Fidelity) -> str:
    """Return the content of export.json."""
    layers = {name: {"rank": rank, "relative_error": error} for name, (rank, error) in fidelity.layers.items()}
    record = {"format": 1, "rank": fidelity.rank, "exact": fidelity.exact, "exact_rank": fidelity.needed}
    return json.dumps(record | {"relative_error": fidelity.error, "layers": layers}, indent=2) + "\n"


def describe(fidelity: Fidelity) -> str:
    """Return a phrase about how closely a LoRA represents the change: exact or approximate, ranks and errors."""
    largest = f"{fidelity.layers[fidelity.worst][1]:.1e} in a layer ({fidelity.worst})"
    errors = f"relative error {fidelity.error:.1e}, at most {largest}"
    if fidelity.exact:
        return f"exact up to rounding: the change has rank {fidelity.needed} at most; {errors}"
    return f"an approximation: rank {fidelity.rank}, and the change has rank {fidelity.needed}; {errors}"


def vllm_max_lora_rank(rank: int) -> int | None:
    """Return the smallest value of vLLM's --max-lora-rank that allows `rank`; None where no value does."""
    return next((limit for limit in VLLM_RANKS if limit >= rank), None)


def _model_card(fidelity: Fidelity, located: ResolvedModel) -> str:
    """Return the model card: metadata for the hub, then Markdown."""
    facts = "library_name: peft\npipeline_tag: text-generation\ntags: [neoplug]\n"
    if located.revision:
        facts += f"base_model: {located.path}\n"
    limit = vllm_max_lora_rank(fidelity.rank)
    served = f"vLLM needs `--max-lora-rank {limit}`" if limit else "Its rank is larger than vLLM supports"
    name = Path(located.source).name if Path(located.source).is_absolute() else located.source
    if located.kind == "prepared":  # the base is not public: only the run directory has it
        name = f"student/` of a run on `{name}"
    return (
        f"---\n{facts}---\n\n# A LoRA of `{name}`\n\n"
        f"The change of a base model by a run of neoplug, as a LoRA of rank {fidelity.rank}: {describe(fidelity)}.\n"
        "Errors are Frobenius norms, relative to that of the change; `export.json` lists them by layer.\n\n"
        f"`peft.PeftModel.from_pretrained(base, FOLDER)` adds it to the base. {served}; "
        "`adapter.gguf`, if present, is for llama.cpp.\n"
    )
