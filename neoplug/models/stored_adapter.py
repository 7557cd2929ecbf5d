"""Stored peft adapters: resolved, compared with a model, and loaded into a teacher or a student.

A teacher is loaded with its adapter. A student's adapter is built by the recipe's plugin, and then the stored weights
are loaded into it, so the plugin's configuration must equal the stored one.
"""

import logging
from collections.abc import Collection, Mapping
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.files.contents import RESTORE, damage_in_run
from neoplug.models.quiet import quiet, quiet_peft
from neoplug.models.reference import CONFIG, WEIGHTS, ResolvedModel, StoredAdapter

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Fields that select the adapted modules: they do not differ in effect where the weights have the same names.
TARGETS = ("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern")
SCALES = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
)  # they do not differ in effect where each layer's are equal
# Fields of an adapter's origin, initialisation and training: they do not change what the adapter computes.
HISTORY = (
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "peft_version", "revision",
    "runtime_config", "task_type", "tinit", "tfinal", "deltaT", "beta1", "beta2", "total_step", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_name_or_path",
)  # fmt: skip
BASE_KEPT = (True, False, "gaussian", "orthogonal", "eva")  # values of init_* that do not change the base model


def virtual_tokens(model: nn.Module) -> int:
    """Return how many virtual tokens a peft model puts before each row; 0 for other adapters and models."""
    config: Any = getattr(model, "active_peft_config", None)
    return config.num_virtual_tokens if getattr(config, "is_prompt_learning", False) else 0


def trigger_tokens(model: nn.Module) -> list[list[int]]:
    """Return the token sequences that the adapters of a peft model look for in its input, as activated LoRA does."""
    configs: Any = getattr(model, "peft_config", None) or {}
    found = []
    for config in configs.values() if isinstance(configs, Mapping) else ():
        values = [value for name, value in vars(config).items() if name.endswith("_tokens")]
        found += [list(value) for value in values if isinstance(value, list | tuple) and value]
    return found


def rename_cache_argument(model: "PeftModel") -> "PeftModel":
    """Rename the cache argument that peft passes to the one that the model's `forward` takes; return `model`.

    peft passes virtual keys and values as `past_key_values`; some families name the argument `cache`.
    """
    base = model.get_base_model()
    if virtual_tokens(model) and "cache" in signature(base.forward).parameters:
        base.register_forward_pre_hook(_rename_cache_argument, with_kwargs=True)
    return model


def _rename_cache_argument(
    module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if "past_key_values" in named:
        named["cache"] = named.pop("past_key_values")
    return positional, named


def locate_adapter(name: str, path: Key = ("adapter_path",), *, revision: str | None = None) -> StoredAdapter:
    """Return the adapter `name`, a folder or a hub id; `revision` is a branch, tag or commit of a hub id.

    Raises RecipeError where it is not an adapter, or one of a run whose files are not as the run recorded them.
    """
    folder, commit = Path(name).expanduser(), None
    if not folder.is_dir():
        folder, commit = _from_hub(name, revision, path)
    stored = StoredAdapter(folder.absolute(), name, commit, path)
    missing = [wanted for wanted in ((CONFIG,), WEIGHTS) if not any((folder / file).is_file() for file in wanted)]
    if missing:
        fix = "name the folder that peft's `save_pretrained` wrote, such as `adapter/` of a run"
        raise stored.error(f"is not a peft adapter: its folder has no {' or '.join(missing[0])}", fix=fix)
    if found := damage_in_run(stored.folder):
        raise stored.error(f"is damaged: {found}", fix=RESTORE)
    return stored


def _from_hub(name: str, revision: str | None, path: Key) -> tuple[Path, str | None]:
    """Return an adapter's folder in the hub's local cache and its commit; download it first where it is missing."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        with quiet():
            config = cached_file(name, CONFIG, revision=revision)
            commit = extract_commit_hash(config, revision)
            for file in WEIGHTS:
                if cached_file(name, file, revision=commit, _raise_exceptions_for_missing_entries=False):
                    break
    except (OSError, ValueError) as error:
        problem = Problem(
            what=f"`{name}` is not a local folder, and was not found on the hub or in its cache",
            why=" ".join(str(error).split()),
            fix="check the name and the network; a local adapter needs the path of its folder",
            path=path,
        )
        raise RecipeError([problem]) from error
    return Path(config).parent, commit


def load_adapter(model: "PreTrainedModel", stored: StoredAdapter) -> "PeftModel":
    """Return a teacher with its stored adapter, which is loaded to the teacher's device; frozen, in evaluation mode."""
    from peft import PeftModel

    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(model, str(stored.folder), torch_device=str(model.device))
    except (RuntimeError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        raise stored.error("cannot be loaded by peft", f"{type(error).__name__}: {error}") from error
    return rename_cache_argument(adapted).eval().requires_grad_(False)


def load_adapter_weights(model: nn.Module, stored: StoredAdapter, plugin: str) -> None:
    """Load the stored weights into the adapter that `plugin` built. Raises RecipeError where they do not fit."""
    from peft import set_peft_model_state_dict

    validate_same_adapter(model, stored, plugin)
    adapted: Any = model
    expected, present = _stored_shapes(adapted), _weights_for(adapted, stored)
    _validate_base_weights(adapted, stored, present.keys() - expected.keys())
    weights = {name: weight for name, weight in present.items() if name in expected}
    with torch.no_grad(), quiet_peft():
        set_peft_model_state_dict(adapted, weights, adapter_name=adapted.active_adapter)


def _validate_base_weights(model: nn.Module, stored: StoredAdapter, names: Collection[str]) -> None:
    """Raise RecipeError where base weights that the adapter's file contains differ from those of `model`.

    names  of these weights; peft may store embeddings of the base with those of the adapter
    """
    base = model.state_dict()
    for name in sorted(names):
        weight = base[name].cpu()
        if not torch.equal(stored.weights[name].to(weight.dtype), weight):
            raise stored.error(
                f"holds {name}, which differs from that of the student's base",
                "the student's base is not changed, so the adapter would run on other weights than it was trained on",
                "set student.model to the model that the adapter was trained on",
            )


def validate_same_adapter(model: nn.Module, stored: StoredAdapter, plugin: str) -> None:
    """Raise RecipeError where a stored adapter differs from the one of `model`, which `plugin` built.

    model  may be on the meta device
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise stored.error(
            f"cannot be loaded into what `{plugin}` trains, which is not a peft adapter",
            fix="merge it into its base first (for a run: `neoplug export`), and set student.model to the result",
        )
    if virtual_tokens(model) and [name for name, _ in _encoder(model).named_parameters()] != ["embedding.weight"]:
        raise stored.error(
            f"cannot be trained further by `{plugin}`: it holds virtual tokens, but not the network that computed them",
            fix="start a new adapter, without adapter_path; a stopped run is continued with `--resume`",
        )
    weights = _weights_for(model, stored)
    names = _unmatched_names(model, weights)
    differences = _differences(stored.config, model.active_peft_config, compare_targets=bool(names))
    if differences.keys() <= set(SCALES) and not names and _has_same_scales(model, stored):
        differences = {}
    if differences:
        saved, built = (", ".join(f"{name} {pair[at]}" for name, pair in differences.items()) for at in (0, 1))
        options = ", ".join(f"{name}: {pair[0]}" for name, pair in differences.items())
        method = "" if "peft_type" in differences else f"set `{{{options}}}` at adapter.{plugin}, or "
        raise stored.error(
            f"was made with {saved}, but `{plugin}` builds {built}",
            "training continues only from an adapter of the same configuration as the recipe's",
            f"{method}name the plugin that builds it",
        )
    _validate_weights(model, stored, weights, names)


def validate_adapter_fits(model: "PreTrainedModel", stored: StoredAdapter) -> None:
    """Raise RecipeError where a stored adapter does not fit a teacher.

    model  the teacher on the meta device; it is changed in place
    """
    from peft import get_peft_model

    with quiet_peft():
        adapted: Any = get_peft_model(model, stored.config)
    weights = _weights_for(adapted, stored)
    _validate_weights(adapted, stored, weights, _unmatched_names(adapted, weights))
    _validate_base_shapes(adapted, stored, weights)


def _validate_base_shapes(model: nn.Module, stored: StoredAdapter, weights: Mapping[str, Tensor]) -> None:
    """Raise RecipeError where base weights in the adapter's file have another shape, as those of resized embeddings."""
    base = model.state_dict()
    for name in sorted(weights.keys() & base.keys()):
        if weights[name].shape != base[name].shape:
            trained, present = list(weights[name].shape), list(base[name].shape)
            raise stored.error(
                f"does not fit the model: it holds {name} of shape {trained}, but the model's is {present}",
                "it was trained on a base whose embeddings were resized",
                f"resize the base's embeddings to {trained[0]} rows, save it, and set `model` to the result",
            )


def validate_start_fits(stored: StoredAdapter, is_quantised: bool) -> None:
    """Raise RecipeError where peft would change quantised base weights when it loads the adapter.

    is_quantised  whether the model is stored or loaded with quantised weights
    """
    start = getattr(stored.config, "init_lora_weights", True)
    if is_quantised and start not in BASE_KEPT:
        raise stored.error(
            f"cannot be loaded into a quantised model: its start, init_lora_weights: {start}, was not converted",
            "peft computes the start from the base's weights again and subtracts it from them, and these are quantised",
            "load the model unquantised, or save the adapter with peft's path_initial_model_for_weight_conversion",
        )


def warn_other_base(stored: StoredAdapter, base: ResolvedModel) -> None:
    """Log a warning where the base that an adapter's configuration names differs from `base` in name and content."""
    trained_on = stored.config.base_model_name_or_path
    if trained_on and trained_on not in (base.source, base.path) and not _is_same(trained_on, base):
        logger.warning("adapter %s was trained on %s, but is loaded into %s", stored.source, trained_on, base.source)


def _is_same(folder: str, base: ResolvedModel) -> bool:
    return (Path(folder) / "config.json").is_file() and ResolvedModel(
        folder, None, folder, "local"
    ).sha256 == base.sha256


def _differences(stored: "PeftConfig", built: "PeftConfig", compare_targets: bool) -> dict[str, tuple[str, str]]:
    """Return the differing fields that change what an adapter computes: name -> (stored value, built value)."""
    old, new = _comparable(stored), _comparable(built)
    names = ["peft_type"] if old["peft_type"] != new["peft_type"] else sorted(old.keys() | new.keys())
    different = {}
    for name in names:
        relevant = name not in HISTORY and "dropout" not in name and (compare_targets or name not in TARGETS)
        pair = old.get(name), new.get(name)
        harmless = name.startswith("init_") and all(value in BASE_KEPT for value in pair)
        if relevant and pair[0] != pair[1] and not harmless:
            different[name] = (_as_yaml(pair[0]), _as_yaml(pair[1]))
    return different


def _comparable(config: "PeftConfig") -> dict[str, Any]:
    """Return a configuration's fields for comparison; sets and sequences become sorted lists, empty maps None."""
    fields = config.to_dict() | {"peft_type": str(getattr(config.peft_type, "value", config.peft_type))}
    return {
        name: sorted(value, key=str) if isinstance(value, set | list | tuple) else value or None
        if isinstance(value, dict) else value
        for name, value in fields.items()
    }  # fmt: skip


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _stored_shapes(model: Any) -> dict[str, torch.Size]:
    """Return name -> shape of the weights that peft would store of a model's adapter."""
    from peft import get_peft_model_state_dict

    if virtual_tokens(model):  # peft computes these weights, which a model on the meta device cannot
        return {"prompt_embeddings": _encoder(model).embedding.weight.shape}
    with quiet_peft():
        state = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    return {name: weight.shape for name, weight in state.items()}


def _encoder(model: Any) -> Any:
    """Return the module that computes a peft model's virtual tokens."""
    return model.prompt_encoder[model.active_adapter]


def _weights_for(model: Any, stored: StoredAdapter) -> dict[str, Tensor]:
    """Return the stored weights by the names of `model`, as peft converts them when it loads them.

    Files of transformers before 5 have the matrices of each expert apart. Raises RecipeError where peft cannot convert.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers as convert

    config, name = model.active_peft_config, model.active_adapter
    try:
        converted: dict[str, Tensor] = convert(model, config, stored.weights, name)
    except (ValueError, RuntimeError, LookupError) as error:
        raise stored.error("does not fit the model: peft cannot convert its names", str(error)) from error
    return converted


def _has_same_scales(model: Any, stored: StoredAdapter) -> bool:
    """Return whether each adapted layer has the rank and lora_alpha that peft reads from the stored configuration."""
    from peft.utils.other import get_pattern_key
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config: Any = deepcopy(stored.config)
    base, adapter = model.get_base_model(), model.active_adapter
    convert_peft_config_for_transformers(config, base, None)
    for name, layer in base.named_modules():
        alphas: Any = getattr(layer, "lora_alpha", {})
        if adapter not in alphas:
            continue
        parameter = getattr(layer, "parameter_name", None)
        full = name.replace(".base_layer", "") + (f".{parameter}" if parameter else "")
        for values, pattern, default in (
            (layer.r, config.rank_pattern, config.r), (alphas, config.alpha_pattern, config.lora_alpha)
        ):  # fmt: skip
            if values[adapter] != pattern.get(get_pattern_key(pattern.keys(), full), default):
                return False
    return True


def _unmatched_names(model: Any, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the weights' names that only the model or only the file has, except the file's weights of the base."""
    expected = _stored_shapes(model).keys()
    missing, unexpected = expected - weights.keys(), weights.keys() - expected - model.state_dict().keys()
    return sorted(missing | unexpected)


def _validate_weights(model: Any, stored: StoredAdapter, weights: Mapping[str, Tensor], unmatched: list[str]) -> None:
    """Raise RecipeError for unmatched names (from `_unmatched_names`) or a weight of another shape."""
    expected = _stored_shapes(model)
    if unmatched:
        name = unmatched[0]
        where = "the model has no such weight" if name in weights else "the file has no such weight"
        raise stored.error(f"does not fit the model: {len(unmatched)} weights differ, as {name}; {where}")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            what = f"does not fit the model: {name} is {list(weights[name].shape)}, but the model needs {list(shape)}"
            raise stored.error(what, "it was trained on a model of another size")
