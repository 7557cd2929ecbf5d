"""The form in which a run saves its student: files of peft, files of the adapter's plugin, or the whole model.

An adapter that none of these could save and load again is refused when it is added: before weights are loaded, or on
the loaded model where the plugin cannot run on the meta device.
"""

from typing import TYPE_CHECKING, TypeGuard

from torch import nn

from neoplug.registry import Plugins

if TYPE_CHECKING:
    from peft import PeftModel

KINDS = ("module", "parameter", "tensor")  # a module's parameters follow from it, and a parameter's tensor
Named = set[tuple[str, str]]  # (kind, name)


def is_peft(model: nn.Module) -> TypeGuard["PeftModel"]:
    """Return whether a model has an adapter of peft."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def parts_of(model: nn.Module) -> Named:
    """Return the names of a model's modules, of its parameters and of the tensors of its state."""
    modules = {("module", name) for name, _ in model.named_modules()}
    parameters = {("parameter", name) for name, _ in model.named_parameters()}  # a tied one has one name
    return modules | parameters | {("tensor", name) for name in model.state_dict()}


def validate_saved_form(plugins: Plugins, base: Named, adapted: nn.Module) -> None:
    """Refuse an adapter whose trained weights could not be saved, or not be loaded again.

    base     what `parts_of` returned before the adapter was added
    adapted  the model with the adapter

    Raises:
        AnswerError: it has modules or weights that the base does not have, is not of peft, and its plugin does not
            implement both `save_adapter` and `load_adapter`; or the plugin implements only one of them.
    """
    saves, loads = (bool(plugins.implements(hook)) for hook in ("save_adapter", "load_adapter"))
    why = "the run, `eval` and `export` load the adapter from its own files"
    if loads and not saves:
        raise plugins.refused("load_adapter", "reads files that no hook writes", why, "implement `save_adapter` too")
    if saves and not loads and not is_peft(adapted):
        raise plugins.refused("save_adapter", "writes files that no hook reads", why, "implement `load_adapter` too")
    if saves or is_peft(adapted):
        return
    parts = parts_of(adapted)
    if parts != base:
        raise plugins.refused("add_adapter", *_difference(parts - base, base - parts))


def _difference(added: Named, removed: Named) -> tuple[str, str, str]:
    """Return what the adapter did to the parts of the base, why that is refused, and the fix."""
    verb, changed = ("added", added) if added else ("removed or renamed", removed)
    kind = next(kind for kind in KINDS if any(part[0] == kind for part in changed))
    name, *more = sorted(name for of_kind, name in changed if of_kind == kind)
    others = f" and {len(more)} more" if more else ""
    return (
        f"{verb} the {kind} `{name}`{others}",
        "the whole model would be saved, which transformers loads without what the adapter changed",
        "implement `save_adapter` and `load_adapter`, which write and read the adapter's own files",
    )
