"""Preflight checks: recipes that cannot run are refused before weights are loaded, by dry runs on the meta device."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from neoplug.data import Corpus
from neoplug.errors import NeoplugError, PluginError, Problem, RecipeError, RunError
from neoplug.hookspecs import Role
from neoplug.models.load import load_config, load_meta_model, plugin_kwargs
from neoplug.models.reference import CONFIG, ResolvedModel, StoredAdapter
from neoplug.models.remote_code import admit
from neoplug.models.resolve import locate
from neoplug.models.stored_adapter import (
    locate_adapter,
    validate_adapter_fits,
    validate_same_adapter,
    validate_start_fits,
    virtual_tokens,
    warn_other_base,
)
from neoplug.recipe import Model, Recipe, ResolvedRecipe
from neoplug.registry import path_of
from neoplug.registry.compatibility import validate_compatibility
from neoplug.registry.consent import Consent
from neoplug.runs.adapted_weights import add_adapter, copied_modules
from neoplug.runs.sharding import number_of_processes, validate_sharded, validate_unquantised
from neoplug.runs.steps import count_steps, make_sampler
from neoplug.seeds import generator
from neoplug.training.optim import make_optimizer, make_schedule, warn_without_warmup

logger = logging.getLogger(__name__)
META_ERROR = re.compile(r"\bmeta\b|incompatible tensor type", re.IGNORECASE)


def find_model(section: Model, role: Role, consent: Consent) -> ResolvedModel:
    """Return the resolved model of a recipe's section `student` or `teacher`, with its stored adapter, if any."""
    located = locate(str(section.model), section.revision, (role, "model"), trust_remote_code=section.trust_remote_code)
    admit(located, consent, (role, "model"))
    if section.adapter_path is None:
        return located
    path, revision = (role, "adapter_path"), section.adapter_revision
    return replace(located, adapter=locate_adapter(section.adapter_path, path, revision=revision))


def dry_run_student(checked: ResolvedRecipe, student: ResolvedModel, corpus: Corpus) -> bool | None:
    """Prepare the student and add its adapter on the meta device, to refuse a misfit before weights are loaded.

    Returns whether every weight of the base is trained: False if none is; None if some are, or copies of some, or where
    plugins or the model cannot run on the meta device.

    Raises:
        RecipeError: the recipe does not fit the model.
        PluginError: a plugin failed.
    """
    steps = count_steps(checked.recipe.train, make_sampler(checked, corpus, 1).steps_per_epoch)
    whole, is_known = None, False
    validate_unquantised(checked, "student", student, plugin_kwargs(checked.plugins, "student"))
    with meta_device("student", "the student is loaded in float32 until its trainable weights are known"):
        base = load_meta_model(student, "student", checked.recipe.student.attn_implementation)
        base = prepare_skeleton(checked, base)
        weights = list(base.parameters())
        model = adapt_skeleton(checked, base, steps, student)
        trained = [weight.requires_grad for weight in weights]
        some = any(trained) and not all(trained)
        whole = None if some or copied_modules(model) else all(trained)
        is_known = True
    if is_known:
        validate_room_for_virtual_tokens(checked.recipe, corpus, student, model)
        with meta_device("student", "the optimizer is made without a dry run"):
            optimizer = make_optimizer(model, checked.plugins, checked.recipe.train.learning_rate)
            make_schedule(optimizer, checked.plugins, checked.recipe.train, steps)
        warn_without_warmup(checked.plugins, checked.recipe.train)
    return whole


def dry_run_teacher(checked: ResolvedRecipe, section: Model, teacher: ResolvedModel) -> None:
    """Refuse conflicting `load` plugins, and an attention or a stored adapter that does not fit the teacher."""
    kwargs = plugin_kwargs(checked.plugins, "teacher")
    validate_unquantised(checked, "teacher", teacher, kwargs)
    if section.attn_implementation is None and teacher.adapter is None:
        return
    with meta_device("teacher", "the teacher is loaded without a dry run"):
        skeleton = load_meta_model(teacher, "teacher", section.attn_implementation)
        if teacher.adapter is not None:
            warn_other_base(teacher.adapter, teacher)
            is_quantised = "quantization_config" in kwargs or hasattr(skeleton.config, "quantization_config")
            validate_start_fits(teacher.adapter, is_quantised)
            with _refused_by_peft(teacher.adapter):
                validate_adapter_fits(skeleton, teacher.adapter)


@contextmanager
def _refused_by_peft(stored: StoredAdapter) -> Iterator[None]:
    """Raise RecipeError in place of any error of peft, but for those of the meta device."""
    try:
        yield
    except NeoplugError:
        raise
    except Exception as error:  # peft has no error class of its own
        if META_ERROR.search(str(error)):
            raise
        why = f"{stored.folder / CONFIG}: {type(error).__name__}: {error}"
        raise stored.error("is refused by peft for this model", why, "name an adapter of this model") from error


@contextmanager
def meta_device(role: Role, consequence: str) -> Iterator[None]:
    """Run code that uses the meta device; if it cannot, leave the context early with a warning.

    consequence  what the run does instead, for the warning

    Raises:
        RunError: code of the model failed for any other reason; a plugin's failure is a PluginError already.
    """
    try:
        yield
    except Exception as error:
        if is_impossible_on_meta(error):
            culprit = f"`{error.plugin}`" if isinstance(error, PluginError) else f"the {role}'s model"
            cause = error.__cause__ if isinstance(error, PluginError) else error
            reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
            logger.warning("%s cannot run on the meta device (%s): %s", culprit, reason, consequence)
        elif isinstance(error, NeoplugError):
            raise
        else:
            why = f"{type(error).__name__}: {error}"
            raise RunError(f"the {role} cannot be built without its weights\nwhy: {why}") from error


def is_impossible_on_meta(error: BaseException) -> bool:
    """Return whether an error, of a plugin or not, arose because tensors on the meta device hold no data.

    torch raises NotImplementedError for an operator without a kernel for this device and for a copy out of it; for the
    rest a plain RuntimeError (`.item()`, tensors on two devices, `.data =`) or TypeError (`.numpy()`) with these words.
    """
    cause = error.__cause__ if isinstance(error, PluginError) else error
    if isinstance(cause, NotImplementedError):
        return True
    return isinstance(cause, RuntimeError | TypeError) and bool(META_ERROR.search(str(cause)))


def prepare_skeleton(checked: ResolvedRecipe, model: Any) -> Any:
    """Prepare a student on the meta device with the recipe's `prepare` plugins, in place; return it."""
    validate_quantised_student(checked, model.config)
    rng = generator(checked.recipe.seed, "rehearsal")
    checked.plugins.each("prepare_student", section="prepare", model=model, batches=None, rng=rng)
    return model


def sets_stored_form(checked: ResolvedRecipe) -> bool:
    """Return whether a plugin under `student.load` says in which form weights are in memory, as one that quantises."""
    return any(section == "student.load" for section, _ in checked.plugins.named("load_kwargs"))


def validate_quantised_student(checked: ResolvedRecipe, config: Any) -> None:
    """Refuse to prepare a student with quantised stored weights, and to load it without a plugin that sets them up."""
    section = checked.recipe.student
    stored = getattr(config, "quantization_config", None) or {}
    if stored and section.prepare:
        what = f"the weights of `{section.model}` are stored quantised, and cannot be prepared"
        why, fix = "packed integers are no matrices that could be cut", "take the unquantised model"
        raise RecipeError([Problem(what, why, fix, ("student", "prepare"))])
    if sets_stored_form(checked) or stored.get("quant_method") != "bitsandbytes":
        return
    problem = Problem(
        what=f"the weights of `{section.model}` are stored quantised, and no plugin under `load` sets them up",
        why="without one, such layers lose gradients on some CPUs and evaluate otherwise than they train",
        fix="name under `student.load` the plugin that quantises so, or take the unquantised model",
        path=("student", "model"),
    )
    raise RecipeError([problem])


def adapt_skeleton(checked: ResolvedRecipe, model: Any, steps: int, student: ResolvedModel) -> nn.Module:
    """Return a student on the meta device with the recipe's adapter.

    Raises:
        RecipeError: the adapter is known not to work with this kind of model, changes other weights than its options
            select, has no trainable parameter, cannot be sharded as the recipe says, or differs in form from the stored
            adapter that it is to start from.
    """
    validate_compatibility(checked, model.config.get_text_config().model_type)
    weights = list(model.parameters())
    rng = generator(checked.recipe.seed, "rehearsal")
    ((section, name),) = checked.plugins.named("add_adapter")
    found = add_adapter(checked.plugins, model, batches=None, total_steps=steps, rng=rng)
    if not any(weight.requires_grad and weight.numel() for weight in found.parameters()):
        what, fix = f"`{name}` leaves nothing of the student to train", "give its options other values"
        raise RecipeError([Problem(what, "it has no trainable parameter", fix, path_of(section, name))])
    validate_sharded(checked, found, weights)
    if checked.recipe.taught_by == "base":
        validate_separate_adapter(weights, found, name)
    if student.adapter is not None:
        validate_same_adapter(found, student.adapter, name)
    return found


def validate_separate_adapter(weights: Iterable[nn.Parameter], adapted: nn.Module, plugin: str) -> None:
    """Refuse an adapter of `plugin` that cannot be turned off, where the student's base is to be the teacher.

    weights  of the base
    """
    trained = sum(weight.requires_grad for weight in weights)
    if trained:
        raise base_is_no_teacher(f"`{plugin}` trains {trained} weights of the base itself")
    if not hasattr(adapted, "disable_adapter"):
        raise base_is_no_teacher(f"what `{plugin}` adds has no method `disable_adapter`, as adapters of peft have")


def base_is_no_teacher(why: str) -> RecipeError:
    """Return the error of a base that cannot be the teacher of its student."""
    what, fix = "the student's base cannot be the teacher", "name another adapter, or the base as `teacher.model`"
    return RecipeError([Problem(what, why, f"{fix}: it is then loaded twice", ("teacher", "self"))])


def validate_devices(recipe: Recipe) -> None:
    """Refuse devices and attention implementations that a section names and this machine does not have."""
    from transformers.utils import is_flash_attn_2_available

    problems, present = [], devices()
    for role, section in (("student", recipe.student), ("teacher", recipe.teacher)):
        device = (section and section.device) or "cpu"
        if ":" in device and number_of_processes() > 1:
            what = f"`{role}.device` is {device}, and there are {number_of_processes()} processes"
            why = "each process has a device of its own, which the launcher's LOCAL_RANK numbers"
            problems.append(Problem(what, why, "leave `device` out, or name the kind alone", (role, "device")))
        if device not in present and f"{device}:0" not in present:
            what, why = f"there is no {device} device here", f"the devices here are {', '.join(present)}"
            fix = "leave `device` out: the best one here is taken, and `neoplug doctor` shows it"
            problems.append(Problem(what, why, fix, (role, "device")))
        if section and section.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
            what, why = "flash_attention_2 does not work here", "it needs the package flash-attn and a CUDA GPU"
            problems.append(Problem(what, why, "leave it out: sdpa is taken", (role, "attn_implementation")))
    if problems:
        raise RecipeError(problems)


def devices() -> list[str]:
    """Return the devices of this machine, as recipes name them: cpu, cuda:0, cuda:1."""
    found = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if found else 0
    return ["cpu", *(f"{found.type}:{index}" for index in range(count))] if found else ["cpu"]


def validate_document_lengths(corpus: Corpus, models: Mapping[Role, ResolvedModel | None], before: int = 0) -> None:
    """Refuse documents longer than a model has positions; with rotary positions, only warn.

    before  number of virtual tokens that an adapter puts before each document
    """
    for role, located in models.items():
        longest = corpus.longest[role]
        config = located and load_config(located, (role, "model")).get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or longest + before
        if positions >= longest + before:
            continue
        virtual = f", and {before} virtual ones before it" if before else ""
        what = f"the longest document has {longest} tokens{virtual}, but the {role} was made for {positions}"
        if getattr(config, "rope_parameters", None):
            logger.warning("%s", what)
            continue
        why, fix = "it has no place for the tokens after that", f"set data.max_length to {positions - before} or less"
        raise RecipeError([Problem(what, why, fix, ("data", "max_length"))])


def validate_room_for_virtual_tokens(recipe: Recipe, corpus: Corpus, student: ResolvedModel, model: nn.Module) -> None:
    """Refuse documents too long for the student once the adapter of `model` adds its virtual tokens."""
    if tokens := virtual_tokens(model):
        reads_both = recipe.taught_by == "ema"
        validate_document_lengths(corpus, {"student": student, "teacher": student if reads_both else None}, tokens)
