"""The commands. Each imports what it needs when it runs, so that ``fusionlib --help`` is quick."""

from __future__ import annotations

from typing import Any

import click


class _Greedy(click.Command):
    """A command whose ``--params`` and ``--chapters`` take several values, as a shell's ``*`` writes them."""

    _OPTIONS = ("--params", "--chapters")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option, filled = "", False
        for word in args:
            if word.startswith("-"):
                option, filled = word if word in self._OPTIONS else "", False
            elif option and filled:
                spread.append(option)
            else:
                filled = bool(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]}, epilog="--traceback shows where an error came from."
)
def group() -> None:
    """Deep model fusion, chapter by chapter: run the notebooks, build the book."""


def _change(what: str) -> Any:
    """The option ``-p KEY VALUE``, whose value is the pairs, each key once."""
    return click.option(
        "-p", "overrides", multiple=True, nargs=2, metavar="KEY VALUE", help=what, callback=_each_key_once
    )


def _each_key_once(context: click.Context, option: Any, pairs: tuple[tuple[str, str], ...]) -> Any:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        from fusionlib.core import ParameterError

        raise ParameterError(f"-p: {', '.join(map(repr, twice))} is set more than once; keep one value.")
    return pairs


def _grid_options(command: Any) -> Any:
    options = [
        click.option(
            "--params", multiple=True, metavar="X.yaml ...", help="Configurations: files, or names in params/."
        ),
        click.option(
            "--chapters", multiple=True, metavar="GLOB ...", help="Only these, e.g. 'methods/*' or ties_merging."
        ),
        click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Chapters at once; default one per core."),
        click.option("--force", is_flag=True, help="Run what is up to date, too."),
        _change("Change a parameter."),
        click.option("-v", "--verbose", is_flag=True, help="Say how kernels are started."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@group.command(cls=_Greedy)
@_grid_options
@click.option("--dry-run", is_flag=True, help="Say what would run, and why.")
def run(**asked: Any) -> int:
    """Execute chapters for configurations, in parallel; what is up to date is skipped."""
    from fusionlib.press import grid, project

    return grid.run(project.find(), grid.Request(**asked))


@group.command(cls=_Greedy)
@_grid_options
@click.option("--no-run", is_flag=True, help="Build from what has been executed before.")
@click.option("--serve", is_flag=True, help="Show the book in a browser afterwards.")
def book(no_run: bool, serve: bool, **asked: Any) -> int:
    """Execute what is not up to date, then build the book."""
    from fusionlib.press import grid, project
    from fusionlib.press import params as files
    from fusionlib.press.book import build

    found = project.find()
    if not no_run:
        code = grid.run(found, grid.Request(**asked))
        if code:
            click.echo("The book was not built; `fusionlib book --no-run` builds it from what there is.", err=True)
            return code
    shown = None
    if asked["params"]:
        read = [files.read(path, found) for path in files.locate(asked["params"], found)]
        shown = [files.override(configuration, asked["overrides"]).name for configuration in read]
    return build(found.root, configurations=shown, serve=serve, force=asked["force"])


@group.command()
def chapters() -> None:
    """List the chapters, the configurations they run for, and their parameters."""
    from fusionlib.press import project
    from fusionlib.press.chapters import read_all
    from fusionlib.press.values import SHARED

    for chapter in read_all(project.find()):
        own = {key: value for key, value in chapter.parameters.items() if key not in SHARED}
        wanted = chapter.configurations
        when = f"configurations: {wanted if isinstance(wanted, str) else ', '.join(wanted)}"
        click.echo(f"{chapter.name}  ({when}{'; after all others' if chapter.last else ''})")
        for key, value in own.items():
            click.echo(f"    {key} = {value!r}")
    click.echo(f"Chapters with a suite also take: {', '.join(SHARED)}.")


@group.command()
def methods() -> None:
    """List the fusion methods."""
    from fusionlib import methods as registry

    for name in registry.names():
        card = registry.get(name).card
        needs = ", ".join(sorted(card.needs)) or "weights only"
        click.echo(f"{name:<20} {card.title:<24} {card.kind:<9} needs {needs}; grain {card.scope}; {card.cite}")


@group.command(cls=_Greedy)
@click.option("--params", multiple=True, metavar="X.yaml ...", help="Configurations: files, or names in params/.")
@_change("Change a parameter.")
def prepare(params: tuple[str, ...], overrides: tuple[tuple[str, str], ...]) -> None:
    """Make the fine-tunes that configurations need, without running a chapter."""
    from fusionlib.press import grid, project
    from fusionlib.press import params as files
    from fusionlib.press.chapters import read_all

    found = project.find()
    read = [files.override(files.read(path, found), overrides) for path in files.locate(params, found)]
    files.check(read, [], read_all(found), found.root)
    grid.prepare([configuration.values for configuration in read])
    click.echo(f"Fine-tunes are ready for: {', '.join(configuration.name for configuration in read)}.")


@group.command(cls=_Greedy)
@click.option("--params", multiple=True, metavar="X.yaml ...", help="Configurations: files, or names in params/.")
@_change("Set or change a parameter.")
def fetch(params: tuple[str, ...], overrides: tuple[tuple[str, str], ...]) -> None:
    """Download what configurations need of the hub: sizes first, resumed where it stopped, checksums compared."""
    from fusionlib.core import ParameterError
    from fusionlib.press import fetching, project
    from fusionlib.press import params as files
    from fusionlib.zoo.hub.fetching import fetch, needed_by

    if not params and not overrides:
        raise ParameterError(
            "nothing was named: fusionlib fetch --params hub-clip-b32, or -p backbone gpt2 -p tasks glue7."
        )
    if params:
        found = project.find()
        read = [files.read(path, found) for path in files.locate(params, found)]
    else:
        read = [files.Configuration("", "-p", {}, {})]  # works outside a checkout, too
    read = [files.override(configuration, overrides) for configuration in read]
    fetching.check(read)
    needed = needed_by(configuration.values for configuration in read)
    if not needed:
        click.echo("Nothing to download: these configurations need nothing of the hub.")
        return
    fetch(needed, click.echo)


@group.command()
@click.option("--params", required=True, metavar="X.yaml", help="A configuration: a file, or a name in params/.")
@click.option("--task", required=True, metavar="NAME", help="The task of it to train on.")
@click.option("--out", metavar="FOLDER", help="Where it goes; by default among fusionlib's checkpoints.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="By default the configuration's first.")
@_change("Change a parameter.")
def train(params: str, task: str, out: str | None, seed: int | None, overrides: tuple[tuple[str, str], ...]) -> None:
    """Fine-tune a configuration's backbone on one of its tasks by the published recipe; goes on where it stopped."""
    from fusionlib.press import training

    click.echo(f"The fine-tune is in {training.train(params, overrides, task, out, seed)}.")


@group.command()
@click.argument("recipe", metavar="FILE.yaml")
@click.option("--out", required=True, metavar="FOLDER", help="Where the merged model goes; must not exist yet.")
@_change("Change a hyper-parameter.")
def merge(recipe: str, out: str, overrides: tuple[tuple[str, str], ...]) -> None:
    """Merge the models that a file names (method, pretrained, finetuned) into a folder; no tasks needed."""
    from pathlib import Path

    from fusionlib.bench import merging
    from fusionlib.bench.merge_recipe import changed, read_recipe
    from fusionlib.press.params import typed

    asked = changed(read_recipe(Path(recipe)), {key: typed(text) for key, text in overrides})
    folder = merging.merge(folder=out, **asked)
    click.echo(f"Merged {len(asked['finetuned'])} models with {asked['method']} into {folder}.")
