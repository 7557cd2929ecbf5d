"""Options of chat templates, `chat_template_kwargs`: variables such as `enable_thinking` that a template reads."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
from jinja2 import meta

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean

KEY: Key = ("data", "chat_template_kwargs")
GENERATION_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
# What transformers gives a template; the data, and not an option, decide it.
GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})


def validate_options(options: Mapping[str, Any], templates: Iterable[str]) -> None:
    """Raise RecipeError for the options that none of the templates, Jinja texts, reads."""
    if not options:
        return
    known = sorted(set().union(*map(_variables, templates)))
    problems = [_unknown(name, known) for name in options if name not in known]
    if problems:
        raise RecipeError(problems)


def _variables(template: str) -> set[str]:
    """Return the names that a template reads and does not set, without those that transformers gives it."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
    try:
        read = meta.find_undeclared_variables(environment.parse(GENERATION_TAGS.sub("", template)))
    except jinja2.TemplateSyntaxError:  # reported where the template is used
        return set()
    return {name for name in read if name not in GIVEN and not name.endswith("_token")}


def _unknown(name: str, known: list[str]) -> Problem:
    if name in GIVEN:
        what, fix = f"`{name}` is no option of a chat template: it is given by the rows", f"remove `{name}`"
    else:
        what = f"the chat template has no option `{name}`{did_you_mean(name, known)}"
        fix = f"its options are {', '.join(known)}" if known else "remove `chat_template_kwargs`: it has no options"
    return Problem(what, fix=fix, path=(*KEY, name))
