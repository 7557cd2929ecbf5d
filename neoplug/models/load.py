"""Loading of a resolved model: tokenizer, configuration and weights; without weights, on the meta device."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, RunError
from neoplug.hookspecs import Role
from neoplug.models import dropout
from neoplug.models.four_bit_kernels import repair_four_bit_kernels
from neoplug.models.quiet import quiet
from neoplug.models.reference import ResolvedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from neoplug.registry import Plugins


def load_tokenizer(located: ResolvedModel, path: Key = ("model",)) -> "PreTrainedTokenizerBase":
    """Return the model's tokenizer. Raises RecipeError where it has none or it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                located.path, revision=located.revision, trust_remote_code=located.trust_remote_code
            )
    except Exception as error:  # tokenizers raises plain Exception for a file that it cannot read
        raise _load_error(located, "has no tokenizer that can be loaded", error, path) from error


def load_config(located: ResolvedModel, path: Key = ("model",)) -> "PretrainedConfig":
    """Return the model's configuration. Raises RecipeError where the model is not a causal language model."""
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                located.path, revision=located.revision, trust_remote_code=located.trust_remote_code
            )
    except (OSError, ValueError, StrictDataclassError) as error:
        raise _load_error(located, "has no configuration that transformers can read", error, path) from error
    _validate_causal_language_model(located, config, path)
    return config


def _validate_causal_language_model(located: ResolvedModel, config: "PretrainedConfig", path: Key) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = getattr(config, "architectures", None) or []
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and (not architectures or causal & set(architectures)):
        return
    if located.trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    name = ", ".join(architectures) or type(config).__name__
    problem = Problem(
        what=f"`{located.source}` is a {name}, not a causal language model",
        why="distillation compares distributions over the next token, which a causal language model predicts",
        fix="choose a model whose class ends in ForCausalLM or LMHeadModel",
        path=path,
    )
    raise RecipeError([problem])


def _load_error(located: ResolvedModel, what: str, error: Exception, path: Key) -> RecipeError:
    """Return the RecipeError for a tokenizer or configuration that `error` kept from being loaded."""
    why, fix = " ".join(str(error).split()), "choose another model"
    if "trust_remote_code" in why and not located.trust_remote_code:
        why = "it needs its own Python files, and neoplug runs a model's code only where the recipe allows it"
        fix = f"review these files, then set `trust_remote_code: true` in `{path[0]}`; or choose another model"
    return RecipeError([Problem(f"`{located.source}` {what}", why, fix, path)])


def load_weights(located: ResolvedModel, **kwargs: Any) -> "PreTrainedModel":
    """Return the model with its stored weights; `kwargs` are further arguments of `from_pretrained`.

    Raises RunError where files cannot be read, or weights are missing or of another shape.
    """
    from transformers import AutoModelForCausalLM

    trust = located.trust_remote_code
    kwargs = {"revision": located.revision, "trust_remote_code": trust, "output_loading_info": True} | kwargs
    kwargs["ignore_mismatched_sizes"] = True  # `_validate_complete_weights` refuses them by name
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)  # the stored one is used
            model, loading_info = AutoModelForCausalLM.from_pretrained(located.path, **kwargs)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        pickled = "of a .bin file only tensors are read, since any other pickle may run code"
        why = pickled if isinstance(error, UnpicklingError) else f"{type(error).__name__}: {error}"
        fix = "download its files again: one of them is damaged"
        raise RunError(f"`{located.source}` has weights that cannot be read\nwhy: {why}\nfix: {fix}") from error
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RunError(f"`{located.source}` could not be loaded\nwhy: {type(error).__name__}: {error}") from error
    _validate_complete_weights(located, loading_info)
    if getattr(model, "is_loaded_in_4bit", False):
        repair_four_bit_kernels()
    return model


def _validate_complete_weights(located: ResolvedModel, loading_info: dict[str, Any]) -> None:
    """Raise RunError for weights that transformers would initialise at random: missing, or of another shape."""
    if loading_info["missing_keys"]:
        missing = sorted(loading_info["missing_keys"])
        raise RunError(
            f"`{located.source}` lacks {len(missing)} of its weights, such as {', '.join(missing[:3])}\n"
            "why: transformers would initialise them at random\nfix: use files that hold the whole model"
        )
    if loading_info["mismatched_keys"]:
        name, stored, wanted = min(loading_info["mismatched_keys"])
        raise RunError(
            f"`{located.source}` has weights whose shapes differ from its config.json: {name} is {list(stored)}, "
            f"not {list(wanted)}\nfix: restore the config.json that belongs to these weights"
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
    shard: Callable[[nn.Module], None] | None = None,
) -> "PreTrainedModel":
    """Return the model on `device`, frozen, in evaluation mode, with dropout off, loaded as its `load` plugins request.

    attn_implementation  None: transformers chooses
    role                 the model's role, passed to the plugins
    section              the section whose plugins apply to this model: "teacher.load" for a teacher
    shard                shards the model before its weights are read; each rank then reads its own part of them

    Raises RecipeError where two plugins set the same argument, or the model is not a causal language model.
    """
    config = load_config(located, (role, "model"))
    dropout.switch_off(config)
    kwargs: dict[str, Any] = {"config": config, "dtype": dtype, "device_map": {"": str(device)}}
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    kwargs |= plugin_kwargs(plugins, role, taken=kwargs)
    sharding: AbstractContextManager[dict[str, Any]] = sharded_on_load(shard) if shard else nullcontext({})
    with sharding as further:
        model = load_weights(located, **kwargs, **further)
    after_load(plugins, model, role, section)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    return model


@contextmanager
def sharded_on_load(shard: Callable[[nn.Module], None]) -> Iterator[dict[str, Any]]:
    """Call `shard` on each model, on the meta device, that transformers builds inside the block, before it is loaded.

    Of a sharded weight transformers reads this rank's part only. Its own plans of what to shard do not name the layers
    of all families, and gather a head and the embedding that it is tied to twice.

    Yields the further arguments of `from_pretrained`.
    """
    from transformers import PreTrainedModel
    from transformers.distributed import DistributedConfig

    def distribute(_: type, model: nn.Module, *__: Any) -> nn.Module:
        shard(model.requires_grad_(False))
        return model

    with patch.object(PreTrainedModel, "maybe_distribute_model", classmethod(distribute)):
        yield {"distributed_config": DistributedConfig()}


def after_load(plugins: "Plugins", model: "PreTrainedModel", role: Role, section: str) -> None:
    """Call `after_load` of every plugin except the `load` plugins of the other model, in the order of their names."""
    other = "student.load" if section == "teacher.load" else "teacher.load"
    excluded = plugins.functions("after_load", section=other).values()
    for function in plugins.functions("after_load").values():
        if function not in excluded:
            function(model=model, role=role)


def enable_checkpointing(model: Any) -> None:
    """Let a model compute the activations of its layers again in backward instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # its newer name
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def plugin_kwargs(plugins: "Plugins", role: Role, taken: Iterable[str] = ()) -> dict[str, Any]:
    """Return the `from_pretrained` arguments that a model's `load` plugins set.

    taken  arguments that neoplug sets itself

    Raises RecipeError for an argument that is set twice.
    """
    merged: dict[str, Any] = {}
    set_by = dict.fromkeys(taken, "neoplug itself")
    problems = []
    for name, kwargs in plugins.each("load_kwargs", section=f"{role}.load", role=role).items():
        for key, value in kwargs.items():
            if key in set_by:
                problems.append(_set_twice(key, name, set_by[key], role))
            set_by[key], merged[key] = f"`{name}`", value
    if problems:
        raise RecipeError(problems)
    return merged


def _set_twice(key: str, name: str, other: str, role: Role) -> Problem:
    return Problem(
        what=f"`{name}` and {other} both set `{key}` for `from_pretrained`",
        why="an argument has one value",
        fix="keep one of the two",
        path=(role, "load", name),
    )


def load_meta_model(located: ResolvedModel, role: Role, attn_implementation: str | None = None) -> "PreTrainedModel":
    """Return the model on the meta device, without weights.

    Raises RecipeError for an attention implementation that the model or this machine does not support.
    """
    config, trust = load_config(located, (role, "model")), located.trust_remote_code
    model = meta_model(config, trust_remote_code=trust)
    if attn_implementation is None:
        return model
    try:
        return meta_model(config, trust_remote_code=trust, attn_implementation=attn_implementation)
    except (ValueError, ImportError, OSError) as error:
        supported = ", ".join(_supported_attentions(model))
        problem = Problem(
            what=f"`{located.source}` cannot use the attention implementation `{attn_implementation}` here",
            why=" ".join(str(error).split()),
            fix=f"choose one of {supported}, or leave the key out: transformers then chooses",
            path=(role, "attn_implementation"),
        )
        raise RecipeError([problem]) from error


def _supported_attentions(model: "PreTrainedModel") -> list[str]:
    """Return the attention implementations of transformers that a model supports on this machine."""
    from transformers.utils import is_flash_attn_2_available

    support = {"sdpa": model._supports_sdpa, "flex_attention": model._supports_flex_attn}
    support["flash_attention_2"] = model._supports_flash_attn and is_flash_attn_2_available()
    return ["eager", *(name for name, supported in support.items() if supported)]


def reload_config(config: "PretrainedConfig") -> "PretrainedConfig":
    """Return a configuration written to config.json and read again: the one that a saved model is loaded with."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        config.to_json_file(file)
        return type(config).from_json_file(file)


def meta_model(
    config: "PretrainedConfig", device: torch.device | str = "meta", dtype: torch.dtype = torch.float32, **kwargs: Any
) -> "PreTrainedModel":
    """Return a frozen model on the meta device: shapes without weights. It holds a copy of `config`.

    device, dtype  of the weights; on another device than meta they have no values that mean anything
    kwargs         arguments of `from_config`: attn_implementation, trust_remote_code
    """
    from transformers import AutoModelForCausalLM

    kwargs = {"trust_remote_code": False} | kwargs
    with quiet(), torch.device(device):
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype, **kwargs)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    return model
