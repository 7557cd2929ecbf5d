"""A stored peft adapter: where it lies, whether it fits, and how a teacher or a student gets it.

A teacher is loaded with it. A student's adapter is built by the recipe's plugin, as ever, and then takes the stored
weights; so what the plugin builds has to be what was stored.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.files import content_hash, sha256_of
from neoplug.models.quiet import quiet, quiet_peft
from neoplug.models.reference import ResolvedModel

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger("neoplug")
CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # as peft looks for them
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")  # the weights' names tell
# What says where an adapter came from, how it started and how it was trained, and nothing of what it computes.
HISTORY = (
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "peft_version", "revision",
    "runtime_config", "task_type", "tinit", "tfinal", "deltaT", "beta1", "beta2", "total_step", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_name_or_path",
)  # fmt: skip
STARTS = (True, False, "gaussian", "orthogonal", "eva")  # values of init_* that leave the base as it is


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as peft stores one.

    folder    where its files lie
    source    as in the recipe
    revision  commit on the hub; None for a folder
    path      its key in the recipe
    """

    folder: Path
    source: str
    revision: str | None
    path: Key

    @cached_property
    def sha256(self) -> str:
        """The hash of its configuration and weights."""
        files = [self.folder / name for name in (CONFIG, *WEIGHTS)]
        return content_hash({file.name: sha256_of(file) for file in files if file.is_file()})

    @property
    def config(self) -> "PeftConfig":
        """Its configuration, anew: peft writes into one that it uses. Raises RecipeError where peft cannot read it."""
        from peft import PeftConfig

        try:
            with quiet_peft():
                return PeftConfig.from_pretrained(str(self.folder))
        except (ValueError, KeyError, TypeError) as error:
            raise self.refused(f"has no {CONFIG} that peft reads", f"{type(error).__name__}: {error}") from error

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its weights on the CPU by peft's names. Raises RecipeError for files that cannot be read."""
        from peft.utils import load_peft_weights

        try:
            return load_peft_weights(str(self.folder), device="cpu")
        except Exception as error:  # each format has its own
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise self.refused("has weights that cannot be read", reason) from error

    def refused(self, what: str, why: str = "", fix: str = "") -> RecipeError:
        """Return the error for an adapter that cannot be used."""
        return RecipeError([Problem(f"the adapter `{self.source}` {what}", why, fix, self.path)])


def virtual_tokens(model: nn.Module) -> int:
    """Return how many tokens of its own a peft model puts before each row's text; 0 where an adapter changes layers."""
    config: Any = getattr(model, "active_peft_config", None)
    return config.num_virtual_tokens if getattr(config, "is_prompt_learning", False) else 0


def rename_cache_argument(model: "PeftModel") -> "PeftModel":
    """Let virtual keys and values reach the model by its name for a cache: peft's older one is warned of."""
    base = model.get_base_model()
    if virtual_tokens(model) and "cache" in signature(base.forward).parameters:
        base.register_forward_pre_hook(_renamed_cache, with_kwargs=True)
    return model


def _renamed_cache(
    module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if "past_key_values" in named:
        named["cache"] = named.pop("past_key_values")
    return positional, named


def locate_adapter(name: str, path: Key = ("adapter_path",)) -> StoredAdapter:
    """Return where the adapter `name` stands, a folder or a hub id. Raises RecipeError where there is none."""
    folder, revision = Path(name).expanduser(), None
    if not folder.is_dir():
        folder, revision = _from_hub(name, path)
    found = StoredAdapter(folder.absolute(), name, revision, path)
    missing = [wanted for wanted in ((CONFIG,), WEIGHTS) if not any((folder / file).is_file() for file in wanted)]
    if missing:
        fix = "name the folder that peft's `save_pretrained` wrote, such as `adapter/` of a run"
        raise found.refused(f"is none: its folder has no {' or '.join(missing[0])}", fix=fix)
    return found


def _from_hub(name: str, path: Key) -> tuple[Path, str | None]:
    """Fetch an adapter from the hub, or from the local cache of it; its commit beside it."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        with quiet():
            config = cached_file(name, CONFIG)
            commit = extract_commit_hash(config, None)
            for file in WEIGHTS:
                if cached_file(name, file, revision=commit, _raise_exceptions_for_missing_entries=False):
                    break
    except (OSError, ValueError) as error:
        problem = Problem(
            what=f"`{name}` is no folder here, and the hub has no such adapter in reach",
            why=" ".join(str(error).split()),
            fix="check the name and the network; a local adapter needs the path of its folder",
            path=path,
        )
        raise RecipeError([problem]) from error
    return Path(config).parent, commit


def load_adapter(model: "PreTrainedModel", stored: StoredAdapter) -> "PeftModel":
    """Return a teacher with its adapter, frozen and in evaluation mode; its adapter is where its weights are."""
    from peft import PeftModel

    with quiet_peft():
        adapted = PeftModel.from_pretrained(model, str(stored.folder), torch_device=str(model.device))
    return rename_cache_argument(adapted).eval().requires_grad_(False)


def load_adapter_weights(model: nn.Module, stored: StoredAdapter, plugin: str) -> None:
    """Put the stored weights into the adapter that `plugin` built. Raises RecipeError where they do not fit."""
    from peft import set_peft_model_state_dict

    validate_same_adapter(model, stored, plugin)
    adapted: Any = model
    present = _present(adapted)
    _validate_base_weights(adapted, stored, present.keys())
    weights = {name: weight for name, weight in stored.weights.items() if name in present}
    with torch.no_grad(), quiet_peft():
        set_peft_model_state_dict(adapted, weights, adapter_name=adapted.active_adapter)


def _validate_base_weights(model: nn.Module, stored: StoredAdapter, adapters: Collection[str]) -> None:
    """Refuse embeddings that peft stored beside an adapter and that are not the base's: the adapter is another's."""
    base = model.state_dict()
    for name in sorted(stored.weights.keys() - adapters):
        ours = base[name].cpu()
        if not torch.equal(stored.weights[name].to(ours.dtype), ours):
            raise stored.refused(
                f"brings {name}, which is not what its base has here",
                "the student's base stays as it is, so the adapter would stand on other weights than it was trained on",
                "name as student.model the model that it was trained on",
            )


def validate_same_adapter(model: nn.Module, stored: StoredAdapter, plugin: str) -> None:
    """Refuse an adapter that is not what `plugin` built into `model`, which may be a skeleton."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise stored.refused(
            f"has no place in what `{plugin}` trains, which is no peft adapter",
            fix="merge it into its base first (a run's by `neoplug export`), and name the result as student.model",
        )
    if virtual_tokens(model) and [name for name, _ in _encoder(model).named_parameters()] != ["embedding.weight"]:
        raise stored.refused(
            f"cannot train on by `{plugin}`: it holds virtual tokens, but not the network that they came out of",
            fix="start anew; a run that was stopped goes on with `--resume`",
        )
    names = _misnamed(model, stored.weights)
    if differences := _differences(model.active_peft_config, stored.config, targets=bool(names)):
        theirs, ours = (", ".join(f"{name} {pair[at]}" for name, pair in differences.items()) for at in (0, 1))
        options = ", ".join(f"{name}: {pair[0]}" for name, pair in differences.items())
        method = "" if "peft_type" in differences else f"write `{{{options}}}` at adapter.{plugin}, or "
        raise stored.refused(
            f"was made with {theirs}, but `{plugin}` builds {ours}",
            "a student goes on from an adapter of the very form that the recipe trains",
            f"{method}name the plugin that builds it",
        )
    _validate_weights(model, stored, names)


def validate_adapter_fits(skeleton: "PreTrainedModel", stored: StoredAdapter) -> None:
    """Refuse a teacher's adapter that does not fit its skeleton; the skeleton is used up."""
    from peft import get_peft_model

    with quiet_peft():
        model: Any = get_peft_model(skeleton, stored.config)
    _validate_weights(model, stored, _misnamed(model, stored.weights))


def warn_other_base(stored: StoredAdapter, base: ResolvedModel) -> None:
    """Warn where an adapter says that it was trained on another model; two names may mean one."""
    trained_on = stored.config.base_model_name_or_path
    if trained_on and trained_on not in (base.source, base.path) and not _is_same(trained_on, base):
        logger.warning("the adapter %s was trained on %s, and is put on %s", stored.source, trained_on, base.source)


def _is_same(folder: str, base: ResolvedModel) -> bool:
    return (Path(folder) / "config.json").is_file() and ResolvedModel(
        folder, None, folder, "local"
    ).sha256 == base.sha256


def _differences(ours: "PeftConfig", theirs: "PeftConfig", targets: bool) -> dict[str, tuple[str, str]]:
    """Return each field that decides what an adapter computes and differs, with the stored and the built value."""
    stored, built = _comparable(theirs), _comparable(ours)
    names = ["peft_type"] if stored["peft_type"] != built["peft_type"] else sorted(stored.keys() | built.keys())
    found = {}
    for name in names:
        counts = name not in HISTORY and "dropout" not in name and (targets or name not in TARGETS)
        pair = stored.get(name), built.get(name)
        harmless = name.startswith("init_") and all(value in STARTS for value in pair)
        if counts and pair[0] != pair[1] and not harmless:
            found[name] = (_shown(pair[0]), _shown(pair[1]))
    return found


def _comparable(config: "PeftConfig") -> dict[str, Any]:
    """Return a configuration's fields; sets and lists become sorted lists."""
    fields = config.to_dict() | {"peft_type": str(getattr(config.peft_type, "value", config.peft_type))}
    return {
        name: sorted(value, key=str) if isinstance(value, set | list | tuple) else value or None
        if isinstance(value, dict) else value
        for name, value in fields.items()
    }  # fmt: skip


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _present(model: Any) -> dict[str, torch.Size]:
    """Return the shapes of the weights that peft would store of a model."""
    from peft import get_peft_model_state_dict

    if virtual_tokens(model):  # peft computes them, which a skeleton cannot
        return {"prompt_embeddings": _encoder(model).embedding.weight.shape}
    with quiet_peft():
        found = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    return {name: weight.shape for name, weight in found.items()}


def _encoder(model: Any) -> Any:
    """Return what makes a peft model's virtual tokens."""
    return model.prompt_encoder[model.active_adapter]


def _misnamed(model: Any, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names that only one of model and file has; the file may hold embeddings of the base too."""
    present = _present(model).keys()
    lacking, strange = present - weights.keys(), weights.keys() - present - model.state_dict().keys()
    return sorted(lacking | strange)


def _validate_weights(model: Any, stored: StoredAdapter, misnamed: list[str]) -> None:
    weights, present = stored.weights, _present(model)
    if misnamed:
        name = misnamed[0]
        where = "the model has no such module" if name in weights else "its file lacks it"
        raise stored.refused(f"does not fit the model: {len(misnamed)} weights differ, as {name}; {where}")
    for name, shape in present.items():
        if weights[name].shape != shape:
            what = f"does not fit the model: {name} is {list(weights[name].shape)}, and the model needs {list(shape)}"
            raise stored.refused(what, "it was trained on a model of another size")
