"""`neoplug schema`: print the JSON schema with which an editor completes and checks recipes."""

from neoplug.cli.screen import echo_json, json_alone


@json_alone()
def schema() -> None:
    """Print the JSON schema of recipes.

    It holds the options of every installed plugin, so this imports them all.
    """
    from neoplug import recipe

    echo_json(recipe.json_schema())
