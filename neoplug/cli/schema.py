"""`neoplug schema`: print the JSON schema with which an editor completes and checks recipes."""

import json

from neoplug.cli.screen import echo


def schema() -> None:
    """Print the JSON schema of recipes.

    It holds the options of every installed plugin, so this imports them all.
    """
    from neoplug import recipe

    echo(json.dumps(recipe.json_schema(), indent=2))
