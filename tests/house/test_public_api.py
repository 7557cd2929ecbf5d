"""The public API: the exports of `neoplug` and `neoplug.testing` are fixed, documented, and all that plugins import."""

import ast
import inspect
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import neoplug
import neoplug.testing

ROOT = Path(__file__).parents[2]

PUBLIC = [
    "API_VERSION", "AdaptableWeight", "AdapterTraits", "Batch", "CodePath", "Divergence", "Document", "Formula",
    "OptionError",
    "Problem", "Recipe", "RecipeError", "Reads", "Role", "RunError", "Softened", "Source", "SparseDistributions",
    "StatesSignal",
    "EntriesSignal", "UsageError", "__version__", "adaptable_weights",
    "collate", "confined", "did_you_mean", "evaluate", "export_model", "hookimpl", "log_mixture", "meta_model",
    "prefers_greater", "quiet_peft", "ranking_problem", "reload_config",
    "rename_cache_argument", "resolve_dtype", "run", "study",
]  # fmt: skip
TESTING = [
    "CACHE", "CALLED", "KITS", "LOAD", "LOSS", "OPTIMIZER", "PREPARATION", "PROBE", "SCHEDULE", "SOURCE", "STOP",
    "STORED_CACHE", "TOKEN_WEIGHT", "TRACKER", "TREATMENT", "Broken", "Example", "Finding", "Kit", "NotApplicable",
    "adapter_kit", "call", "check_adapter", "check_cache", "check_chunks", "check_closed_form", "check_finite",
    "check_finite_differences", "check_inputs_untouched", "check_large_vocabulary", "check_loss",
    "check_load", "check_masked", "check_no_tokens", "check_not_negative", "check_optimizer", "check_prepare",
    "check_probe",
    "check_schedule", "check_shape", "check_shift", "check_source", "check_splits", "check_stop",
    "check_stored_cache", "check_teacher_gradient", "check_token_weight", "check_tracker", "check_treatment",
    "check_zero_where_equal", "examine", "examples", "value",
]  # fmt: skip
NOT_DOCUMENTED = {"API_VERSION", "__version__", "CodePath", "Reads", "Role"}  # a string and types have no docstring

# Import paths that earlier documentation named: path -> whether it is deprecated.
PROMISED = {
    **{f"neoplug.{name}": False for name in ("Problem", "hookimpl", "run")},
    **{f"neoplug.hookspecs.{name}": False for name in ("HOOKS_OF_SECTION", "Role", "hookimpl")},
    **{
        f"neoplug.errors.{name}": False
        for name in ("Mark", "NeoplugError", "Problem", "RecipeError", "RunError", "UsageError", "did_you_mean")
    },
    **{f"neoplug.data.batch.{name}": False for name in ("Batch", "Document", "Layout", "collate")},
    **{
        f"neoplug.recipe.{name}": name == "Checked"
        for name in ("Checked", "Data", "Evaluate", "Model", "Recipe", "Student", "Train", "load")
    },
    **{
        f"neoplug.models.{name}": True
        for name in (
            "DTYPES", "Located", "cache_by_its_name", "default_dtype", "dtype_named", "load_config", "load_model",
            "load_skeleton", "load_tokenizer", "load_weights", "locate", "locate_adapter", "plugin_kwargs", "prepare",
            "put_into", "put_on", "refuse_other_adapter", "refuse_unfit", "reread", "skeleton", "tell_other_base",
            "virtual_tokens",
        )
    },
    "neoplug.models.quiet.quiet_peft": False,
    **{f"neoplug.testing.{name}": False for name in TESTING},
    **{f"neoplug.testing.families.{name}": False for name in ("FAMILIES", "make")},
    **{f"neoplug_losses.divergence.{name}": True for name in ("Divergence", "Softened", "log_mixture")},
    "neoplug_adapters.tuner.Tuner": False,
    "neoplug_adapters.virtual_tokens.VirtualTokens": False,
}  # fmt: skip


def imported_by_plugins():
    """Yield (file, name) of each name that a file in plugins/ imports from `neoplug` or a module of it."""
    for file in sorted((ROOT / "plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            if any(module == "neoplug" or (module or "").startswith("neoplug.") for module in modules):
                yield from ((file.name, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize(("module", "names"), [(neoplug, PUBLIC), (neoplug.testing, TESTING)])
def test_the_public_names_are_these(module, names):
    assert sorted(module.__all__) == sorted(names)
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - NOT_DOCUMENTED))
def test_each_public_name_has_a_docstring(name):
    value = getattr(neoplug, name)
    if name == "hookimpl":  # an instance of pluggy's class
        value = type(value)
    text = inspect.getdoc(value) or ""
    assert text
    assert not text.startswith(f"{name}("), "the signature that dataclasses write is no docstring"


@pytest.mark.parametrize("name", TESTING)
def test_each_name_for_tests_has_a_docstring(name):
    value = getattr(neoplug.testing, name)
    assert inspect.getdoc(type(value) if isinstance(value, neoplug.testing.Kit) else value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'bach'"):
        neoplug.bach  # noqa: B018


def test_importing_neoplug_imports_no_torch():
    code = "import sys, neoplug; sys.exit(', '.join({'torch', 'transformers', 'peft'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("hook", ["rate", "should_stop", "on_log", "token_loss", "edit_batch"])
def test_a_kit_that_needs_no_model_imports_neither_transformers_nor_peft(hook):
    code = f"import sys; from neoplug.testing import KITS, examine; KITS[{hook!r}]; "
    code += "sys.exit(', '.join({'transformers', 'peft'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_of_the_kits_has_a_public_name():
    """Once imported, such a module would hide the name, which is imported on first use."""
    modules = {file.stem for file in Path(neoplug.testing.__file__).parent.glob("*.py")}
    assert not modules & set(TESTING)


def test_plugins_import_only_public_names():
    found = list(imported_by_plugins())
    assert len(found) > 50
    public = {f"neoplug.{name}" for name in PUBLIC} | {f"neoplug.testing.{name}" for name in TESTING}
    assert [(file, name) for file, name in found if name not in public] == []


@pytest.mark.parametrize(("path", "deprecated"), PROMISED.items())
def test_promised_import_paths_work(path, deprecated):
    module, _, name = path.rpartition(".")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(f"from {module} import {name}", {})
    ours = [warning for warning in caught if f"{module}.{name} is deprecated" in str(warning.message)]
    assert bool(ours) == deprecated
    assert all(warning.category is DeprecationWarning for warning in ours)
    assert all(warning.filename == "<string>" for warning in ours), "the warning names another line than the import"


def test_a_moved_name_is_the_same_object():
    with pytest.warns(DeprecationWarning, match="import meta_model from neoplug"):
        old = import_module("neoplug.models").skeleton
    assert old is neoplug.meta_model
