"""A LoRA in peft's own files, kept so plain that others read it: one rank, one scale, linear layers and no biases.

adapter_model.safetensors   base_model.model.NAME.lora_A.weight [R, I], base_model.model.NAME.lora_B.weight [O, R]
adapter_config.json         lora_alpha = r, so that the change is B A
export.json                 how well it holds the run's change, layer by layer
README.md                   the same in words, and how to load it
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from neoplug.export.low_rank import Fidelity, Layer
from neoplug.models.reference import ResolvedModel

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


def write_folder(
    path: Path,
    matrices: Mapping[str, tuple[Tensor, Tensor]],
    found: Fidelity,
    base: nn.Module,
    layers: Mapping[str, Layer],
    located: ResolvedModel,
) -> None:
    """Write B [O, R] and A [R, I] of each layer of `base`, and what was `found` of them, to the folder `path`."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    tensors = {}
    for name, (up, down) in matrices.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.contiguous()
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(
        r=found.rank,
        lora_alpha=found.rank,
        target_modules=_targets(base, set(matrices)),
        fan_in_fan_out=any(layer.transposed for layer in layers.values()),
        base_model_name_or_path=located.path if located.revision else str(Path(located.path).absolute()),
        revision=located.revision,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(path)
    (path / "export.json").write_text(_record(found), encoding="utf-8")
    (path / "README.md").write_text(_page(found, located), encoding="utf-8")


def _targets(base: nn.Module, names: set[str]) -> list[str]:
    """Return the ends of the layers' names where these say which layers; else whole names."""
    ends = {name.rpartition(".")[2] for name in names}
    meant = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if meant == names else names)


def _record(found: Fidelity) -> str:
    layers = {name: {"rank": rank, "relative_error": error} for name, (rank, error) in found.layers.items()}
    record = {"format": 1, "rank": found.rank, "exact": found.exact, "exact_rank": found.needed}
    return json.dumps(record | {"relative_error": found.error, "layers": layers}, indent=2) + "\n"


def told(found: Fidelity) -> str:
    """Return what the LoRA holds of the change, in a sentence."""
    where = f"relative error {found.error:.1e}, at most {found.layers[found.worst][1]:.1e} in a layer ({found.worst})"
    if found.exact:
        return f"exact up to rounding: the change has rank {found.needed} at most; {where}"
    return f"an approximation: rank {found.rank} of {found.needed} that the change has; {where}"


def limit_for_vllm(rank: int) -> int | None:
    """Return the least --max-lora-rank that takes this rank; None where there is none."""
    return next((limit for limit in VLLM_RANKS if limit >= rank), None)


def _page(found: Fidelity, located: ResolvedModel) -> str:
    """Return the model card: metadata for the hub, then Markdown for people."""
    facts = "library_name: peft\npipeline_tag: text-generation\ntags: [neoplug]\n"
    if located.revision:
        facts += f"base_model: {located.path}\n"
    limit = limit_for_vllm(found.rank)
    served = f"vLLM takes it with `--max-lora-rank {limit}`" if limit else "Its rank is more than vLLM takes"
    name = Path(located.source).name if Path(located.source).is_absolute() else located.source
    name = f"student/` of a run on `{name}" if located.kind == "prepared" else name  # a base that only the run has
    return (
        f"---\n{facts}---\n\n# A LoRA of `{name}`\n\n"
        f"What a run of neoplug changed in its base, as a plain LoRA of rank {found.rank}: {told(found)}.\n"
        "Errors are Frobenius norms, as shares of the change's own; `export.json` has them by layer.\n\n"
        f"`peft.PeftModel.from_pretrained(base, FOLDER)` adds it to the base. {served}; "
        "`adapter.gguf`, where it is here, is for llama.cpp.\n"
    )
