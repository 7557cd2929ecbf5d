"""Load a located model as it will run: tokenizer, configuration, weights; and its skeleton without any."""

import logging
import warnings
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, RunError
from neoplug.hookspecs import Role
from neoplug.models import dropout
from neoplug.models.quiet import quiet
from neoplug.models.reference import ResolvedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from neoplug.registry import Plugins

log = logging.getLogger("neoplug")


def load_tokenizer(located: ResolvedModel, path: Key = ("model",)) -> "PreTrainedTokenizerBase":
    """Return the model's own tokenizer. Raises RecipeError where it has none that loads."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                located.path, revision=located.revision, trust_remote_code=located.trust_remote_code
            )
    except Exception as error:  # tokenizers knows no class of its own for a file that it cannot read
        raise _refused(located, "has no tokenizer that loads", error, path) from error


def load_config(located: ResolvedModel, path: Key = ("model",)) -> "PretrainedConfig":
    """Return the model's configuration. Raises RecipeError for what is no causal language model."""
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                located.path, revision=located.revision, trust_remote_code=located.trust_remote_code
            )
    except (OSError, ValueError, StrictDataclassError) as error:
        raise _refused(located, "has no configuration that transformers knows", error, path) from error
    _validate_causal_language_model(located, config, path)
    return config


def _validate_causal_language_model(located: ResolvedModel, config: "PretrainedConfig", path: Key) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    trained_as = getattr(config, "architectures", None) or []
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and (not trained_as or known & set(trained_as)):
        return
    if located.trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    name = ", ".join(trained_as) or type(config).__name__
    problem = Problem(
        what=f"`{located.source}` is a {name}, no causal language model",
        why="a distribution over the next token is what one model teaches the other",
        fix="choose a model whose class ends in ForCausalLM or LMHeadModel",
        path=path,
    )
    raise RecipeError([problem])


def _refused(located: ResolvedModel, what: str, error: Exception, path: Key) -> RecipeError:
    why, fix = " ".join(str(error).split()), "choose another model"
    if "trust_remote_code" in why and not located.trust_remote_code:
        why = "it needs Python files of its own, and neoplug runs a model's code only where the recipe asks for it"
        fix = f"read these files; then `trust_remote_code: true` in `{path[0]}` runs them. Or choose another model"
    return RecipeError([Problem(f"`{located.source}` {what}", why, fix, path)])


def load_weights(located: ResolvedModel, **kwargs: Any) -> "PreTrainedModel":
    """Return the model as `from_pretrained` gives it. Raises RunError where weights are missing from the files."""
    from transformers import AutoModelForCausalLM

    trust = located.trust_remote_code
    kwargs = {"revision": located.revision, "trust_remote_code": trust, "output_loading_info": True} | kwargs
    kwargs["ignore_mismatched_sizes"] = True  # they are refused below, by their names
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)  # as it is stored
            model, found = AutoModelForCausalLM.from_pretrained(located.path, **kwargs)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        only = "of a .bin file nothing but tensors is read, since any other pickle may run code"
        why = only if isinstance(error, UnpicklingError) else f"{type(error).__name__}: {error}"
        fix = "fetch its files again; one of them is damaged"
        raise RunError(f"`{located.source}` has weights that cannot be read\nwhy: {why}\nfix: {fix}") from error
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RunError(f"`{located.source}` could not be loaded\nwhy: {type(error).__name__}: {error}") from error
    _validate_complete_weights(located, found)
    return model


def _validate_complete_weights(located: ResolvedModel, found: dict[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers."""
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise RunError(
            f"`{located.source}` lacks {len(missing)} of its weights, such as {', '.join(missing[:3])}\n"
            "why: transformers would fill them with random numbers\nfix: use the files of the whole model"
        )
    if found["mismatched_keys"]:
        name, stored, wanted = min(found["mismatched_keys"])
        raise RunError(
            f"`{located.source}` has weights of other shapes than its config.json says: {name} is {list(stored)}, "
            f"not {list(wanted)}\nfix: put the configuration back that belongs to these weights"
        )


def load_model(
    located: ResolvedModel,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attn_implementation: str | None,
    plugins: "Plugins",
    role: Role,
    section: Literal["teacher.load", "student.load"],
) -> "PreTrainedModel":
    """Return the model on `device`, in evaluation mode and frozen, without dropout, as its `load` plugins want it.

    attn_implementation  None leaves the choice to transformers

    Raises RecipeError for two plugins that ask for one key, or for what is no causal language model.
    """
    config = load_config(located, (role, "model"))
    dropout.switch_off(config)
    kwargs: dict[str, Any] = {"config": config, "dtype": dtype, "device_map": {"": str(device)}}
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    model = load_weights(located, **kwargs | plugin_kwargs(plugins, role, taken=kwargs))
    _after_load(plugins, model, role, section)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    return model


def _after_load(plugins: "Plugins", model: "PreTrainedModel", role: Role, section: str) -> None:
    """Call every plugin but the `load` plugins of the other model, in the order of their names."""
    other = "student.load" if section == "teacher.load" else "teacher.load"
    not_theirs = plugins.functions("after_load", section=other).values()
    for function in plugins.functions("after_load").values():
        if function not in not_theirs:
            function(model=model, role=role)


def plugin_kwargs(plugins: "Plugins", role: Role, taken: Iterable[str] = ()) -> dict[str, Any]:
    """Merge what a model's `load` plugins ask `from_pretrained` for. Raises RecipeError for a key asked for twice."""
    merged: dict[str, Any] = {}
    asked_by = dict.fromkeys(taken, "neoplug itself")
    problems = []
    for name, kwargs in plugins.each("load_kwargs", section=f"{role}.load", role=role).items():
        for key, value in (kwargs or {}).items():
            if key in asked_by:
                problems.append(_asked_twice(key, name, asked_by[key], role))
            asked_by[key], merged[key] = f"`{name}`", value
    if problems:
        raise RecipeError(problems)
    return merged


def _asked_twice(key: str, name: str, other: str, role: Role) -> Problem:
    return Problem(
        what=f"`{name}` and {other} both set `{key}` for `from_pretrained`",
        why="only one value can reach it",
        fix="keep one of the two",
        path=(role, "load", name),
    )


def load_meta_model(located: ResolvedModel, role: Role, attn_implementation: str | None = None) -> "PreTrainedModel":
    """Return the model's skeleton. Raises RecipeError for an attention that it or this machine cannot run."""
    config, trust = load_config(located, (role, "model")), located.trust_remote_code
    bare = meta_model(config, trust_remote_code=trust)
    if attn_implementation is None:
        return bare
    try:
        return meta_model(config, trust_remote_code=trust, attn_implementation=attn_implementation)
    except (ValueError, ImportError, OSError) as error:
        problem = Problem(
            what=f"`{attn_implementation}` is no attention that `{located.source}` can run here",
            why=" ".join(str(error).split()),
            fix=f"name one of {', '.join(_attentions(bare))}; left out, transformers takes the best",
            path=(role, "attn_implementation"),
        )
        raise RecipeError([problem]) from error


def _attentions(model: "PreTrainedModel") -> list[str]:
    """Return the attentions of transformers' own that a model can run on this machine."""
    from transformers.utils import is_flash_attn_2_available

    can = {"sdpa": model._supports_sdpa, "flex_attention": model._supports_flex_attn}
    can["flash_attention_2"] = model._supports_flash_attn and is_flash_attn_2_available()
    return ["eager", *(name for name, supported in can.items() if supported)]


def reload_config(config: "PretrainedConfig") -> "PretrainedConfig":
    """Return a configuration as its file gives it back, which a stored model is loaded by."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        config.to_json_file(file)
        return type(config).from_json_file(file)


def meta_model(config: "PretrainedConfig", **kwargs: Any) -> "PreTrainedModel":
    """Return the model on the meta device, frozen: shapes without weights. It has a configuration of its own.

    kwargs  of `from_config`: attn_implementation, trust_remote_code
    """
    from transformers import AutoModelForCausalLM

    kwargs = {"trust_remote_code": False} | kwargs
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32, **kwargs)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    return model
