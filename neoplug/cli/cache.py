"""`neoplug cache`: store the teacher's output once, and list, verify or remove what is stored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neoplug.cli.arguments import Overrides, Trust
from neoplug.cli.screen import duration, echo, heading, size, table
from neoplug.errors import UsageError

if TYPE_CHECKING:
    from neoplug.runs.teacher_caches import CacheFacts
    from neoplug.runs.teacher_estimate import CacheEstimate

SHOWN = 12  # characters of a key: enough to name it


def cache(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or the name of a shipped recipe; with --verify or --remove the key of a cache.",
            metavar="RECIPE|KEY",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Also write a folder from which another machine trains without the teacher.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    trust: Trust = None,
    listing: Annotated[bool, typer.Option("--list", help="List the caches on this machine.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read the cache KEY, or all, and report damage.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the cache KEY.")] = False,
) -> None:
    """Store the teacher's output for a recipe's data.

    Says first how large it will be, how long it takes and how far the training gradient is from that of the teacher;
    then computes what is not stored yet. A run of the recipe does the same by itself.
    """
    _validate(target, bool(overrides or output or trust), [listing, verify, remove])
    if listing:
        print_caches()
    elif verify:
        print_damage(target)
    elif remove:
        print_removed(target)
    else:
        build(str(target), overrides, output, trust)


def _validate(target: str | None, has_more: bool, actions: list[bool]) -> None:
    """Refuse combinations of arguments that mean nothing.

    has_more  whether there are arguments that only a recipe has
    """
    if sum(actions) > 1:
        raise UsageError("--list, --verify and --remove exclude each other\nfix: keep one")
    if any(actions) and has_more:
        what = "--list, --verify and --remove take no recipe"
        raise UsageError(f"{what}\nfix: leave overrides, --output and --trust out")
    if actions[0] and target:
        raise UsageError(f"--list takes no argument, but `{target}` is given\nfix: leave it out")
    if target is None and not any(actions[:2]):
        missing = "key" if actions[2] else "recipe"
        fix = "`neoplug cache --list` shows the keys" if actions[2] else "name a recipe, or use --list or --verify"
        raise UsageError(f"a {missing} is missing\nfix: {fix}")


def build(recipe: str, overrides: list[str] | None, output: Path | None, trust: list[str] | None) -> None:
    """Build the cache of a recipe, and print what it has."""
    from neoplug import recipe as recipes
    from neoplug.environment.memory import keep_freed

    keep_freed()
    checked = recipes.load(recipe, overrides or (), trust=trust or ())

    from neoplug.cli import watch
    from neoplug.runs.teacher_caches import prepare_cache

    with watch.log_to_stderr(), watch.progress(every=1) as progress:
        facts = prepare_cache(checked, output, progress, print_estimate)
    if watch.is_main():
        heading("the teacher's cache")
        table(rows_of(facts))
        if output is not None:
            echo(f"next: on the other machine, {output} in place of the kind under `teacher.cache`, without a `model`")


def print_estimate(estimate: "CacheEstimate") -> None:
    """Print what building will take, and the error of what is stored."""
    missing, tokens = estimate.documents, estimate.tokens
    error = f"gradient {estimate.angle:.2f} degrees from the teacher's, {estimate.norm_ratio:.3f} times as long"
    table(
        [
            ["to compute", f"{missing['train']:,} training documents, {missing['held_out']:,} held-out documents"],
            ["size", f"{size(estimate.bytes)} for {tokens['train']:,} + {tokens['held_out']:,} answer tokens"],
            ["a token", f"{estimate.bytes_per_token:,.1f} bytes of a training document"],
            ["time", f"about {duration(estimate.seconds)} on this machine"],
            ["error", f"{error}; KL {estimate.kl:.3g} nats per token"],
            ["", f"measured on {estimate.sample_tokens:,} tokens with the untrained student; it grows with training"],
        ]
    )


def rows_of(facts: "CacheFacts") -> list[list[str]]:
    """Return the facts of a cache as the rows of a table."""
    kind = ", ".join(f"{name} {options or ''}".strip() for name, options in facts.kind.items()) or "damaged"
    return [
        ["  key", facts.key],
        ["  teacher", facts.source],
        ["  kind", kind],
        ["  documents", f"{facts.documents[0]:,} training, {facts.documents[1]:,} held-out"],
        ["  size", size(facts.bytes)],
    ]


def print_caches() -> None:
    """Print the caches on this machine, one a line."""
    from neoplug.runs.cache_folder import teachers_folder
    from neoplug.runs.teacher_caches import list_caches

    caches = list_caches()
    if not caches:
        echo(f"no teacher's cache in {teachers_folder()}")
        return
    rows = [
        [
            facts.key[:SHOWN],
            facts.source or "damaged",
            " ".join(facts.kind),
            f"{facts.documents[0]:,}",
            f"{facts.documents[1]:,}",
            size(facts.bytes),
        ]
        for facts in caches
    ]
    table(rows, header=["key", "teacher", "kind", "training", "held-out", "size"])


def print_damage(key: str | None) -> None:
    """Print the state of a cache, or of all; exit with 1 where something is damaged."""
    from neoplug.runs.teacher_caches import verify_caches

    is_damaged = False
    for name, lines in verify_caches(key):
        is_damaged |= bool(lines)
        echo(f"{name[:SHOWN]}  {'damaged' if lines else 'intact'}")
        for line in lines:
            echo(f"  {line}")
    if is_damaged:
        echo("fix: run a recipe that uses it, or `neoplug cache RECIPE`: what is damaged is computed again")
        raise typer.Exit(1)


def print_removed(key: str | None) -> None:
    """Remove a cache, and print what it had."""
    from neoplug.runs.teacher_caches import remove_cache

    facts = remove_cache(str(key))
    echo(f"removed {facts.key[:SHOWN]}: {facts.source or 'damaged'}, {size(facts.bytes)}")
