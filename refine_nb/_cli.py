"""The command line, `refine-nb`; modules are imported when a command needs them, so that `--help` is quick."""
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Run sweeps of experiment notebooks, and judge claims by their results.")


def shown_version(
    requested: bool,  # whether --version was given
) -> bool:
    "Print the version, and end"
    from importlib.metadata import version
    if not requested: return False
    typer.echo(f"refine_nb {version('refine_nb')}")
    raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=shown_version, is_eager=True,
                                          help="Print the version, and end.")] = False,
):
    "Run sweeps of experiment notebooks, and judge claims by their results."


def stop(
    error: Exception,  # a mistake of the user's, in words
) -> typer.Exit:
    "Say what is wrong, without a traceback"
    typer.echo(f"refine-nb: {error}", err=True)
    return typer.Exit(2)


def named(
    where: list[str] | None,  # name=value
) -> dict[str, str]:
    "What `--where` asks for, as text"
    values = {}
    for given in where or []:
        name, is_given, value = given.partition("=")
        if not is_given: raise stop(ValueError(f"--where {given}: write name=value, such as seed=0"))
        if values.get(name, value) != value:
            raise stop(ValueError(f"--where {name}={values[name]} and {given}: a run has one {name}; give the "
                                  "command twice"))
        values[name] = value
    return values


@contextmanager
def refusing():
    "What the library refuses ends a command with its sentence and exit code 2; Ctrl-C ends it with 130"
    from refine_nb._arms import VerifyError
    from refine_nb._attempts import RecordError
    from refine_nb._files import FileError
    from refine_nb._project import GitError
    from refine_nb.cards import CardError
    from refine_nb.parameters import ParameterError
    from refine_nb.sweep import SweepError
    from refine_nb.tables import TableError
    refused = CardError, FileError, GitError, ParameterError, RecordError, SweepError, TableError, VerifyError
    try: yield
    except refused as error: raise stop(error) from None
    except OSError as error: raise stop(ValueError(f"{error.filename or 'the system'}: {error.strerror}")) from None
    except KeyboardInterrupt: raise typer.Exit(130) from None


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep file, experiments/sweeps/NAME.yaml, or its name.")],
    workers: Annotated[Optional[int], typer.Option(
        help="Runs at a time. Without it: one per core, or one where there is a GPU.")] = None,
    results: Annotated[Optional[Path], typer.Option(help="Write tables here and not to the "
                                                         "project's results/.")] = None,
    runs: Annotated[Optional[Path], typer.Option(help="Keep records here and not in the project's runs/.")] = None,
    refresh: Annotated[bool, typer.Option(
        "--refresh", help="Repeat rows that were recorded at another commit or on another processor.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs and their cost, run nothing.")] = False,
    where: Annotated[Optional[list[str]], typer.Option(
        help="name=value: run only what has this value, such as seed=0; several of them must hold together.")] = None,
):
    "Run what a sweep file wants and is missing; leaves results/NAME/runs.csv and curves.csv."
    from refine_nb.execute import run_sweep
    with refusing(): ended = run_sweep(file, workers, results, runs, refresh, dry_run, named(where))
    if {"failed", "blocked"} & set(ended.values()): raise typer.Exit(1)


@app.command()
def rerun(
    file: Annotated[Path, typer.Argument(help="The sweep file, experiments/sweeps/NAME.yaml, or its name.")],
    where: Annotated[Optional[list[str]], typer.Option(help="name=value: only rows with this value.")] = None,
    workers: Annotated[Optional[int], typer.Option(help="Runs at a time. Without it: one per core.")] = None,
):
    "Run recorded rows again on this machine; prints recorded, here, difference, and what was to be expected."
    from refine_nb.rerun import rerun as again, rerun_text
    with refusing(): table = again(file, named(where), workers)
    typer.echo(rerun_text(table))
    if table["expected"].str.startswith("DIFFERS").any(): raise typer.Exit(1)


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(help="results/NAME, perhaps with git's conflict markers in its tables.")],
    others: Annotated[Optional[list[Path]], typer.Argument(help="results/NAME of other machines.")] = None,
):
    "Join the tables of one sweep, from other machines or from the two sides of a conflict: one row a question."
    from refine_nb.tables import join_tables
    with refusing(): before, now = join_tables(folder, others or [])
    typer.echo(f"{folder}: {now} rows, {now - before} more than before")


@app.command()
def claims(
    check: Annotated[bool, typer.Option(
        "--check", help="Write nothing; fail if CLAIMS.md and the site's page disagree with the results.")] = False,
    root: Annotated[Path, typer.Option(help="A folder inside the project.", exists=True)] = Path("."),
):
    "Judge every claim card by results/ and write CLAIMS.md and the site's page."
    from refine_nb.claims import write_claims
    from refine_nb.verify import certified
    with refusing(): verdicts, differ = write_claims(root, check, *certified(root))
    for v in verdicts: typer.echo(f"{v.verdict:10}  {v.card['id']}  {v.why}")
    if differ:
        raise stop(ValueError(f"{', '.join(differ)} disagree with results/: "
                              "run `refine-nb claims` and commit what it writes"))


@app.command()
def verify(
    sweeps: Annotated[Optional[list[str]], typer.Argument(help="Names of sweeps. Without any: all that "
                                                               "have a table.")] = None,
    changed_since: Annotated[Optional[str], typer.Option(
        help="Only few arms, which execute all that changed since this commit.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also arms whose certificate holds for today's code.")] = False,
    workers: Annotated[Optional[int], typer.Option(help="Processes at a time. Without it: one per core.")] = None,
    states: Annotated[bool, typer.Option("--states", help="Run nothing; count the states of all rows.")] = False,
    check: Annotated[bool, typer.Option(
        "--check", help="Run nothing; fail if a row under a decided card is changed.")] = False,
    where: Annotated[Optional[list[str]], typer.Option(help="name=value: only arms with this value.")] = None,
    root: Annotated[Path, typer.Option(help="A folder inside the project.", exists=True)] = Path("."),
):
    "Run recorded commits and today's code, shortened, and compare; certificates go to results/NAME/verified.csv."
    from refine_nb import verify as library
    with refusing():
        if states: return typer.echo(library.count_states(root))
        if check: return refuse_changed(library.changed_rows(root))
        made = library.verify(sweeps or (), root, changed_since, again, workers, named(where))
    typer.echo(library.certificate_summary(made))
    if any(row["outcome"] != "equal" for row in made): raise typer.Exit(1)


def refuse_changed(
    changed: dict[str, list[str]],  # claim card → changed rows
) -> None:
    "Name the cards that stand on changed rows, and fail"
    for card, rows in changed.items():
        typer.echo(f"changed: {card} is decided on {len(rows)} rows that today's code does not give, such as {rows[0]}",
                   err=True)
    if changed: raise typer.Exit(1)


@app.command()
def compare(
    text: Annotated[str, typer.Argument(help="A corpus by name, or the path of a .txt or .md file.")] = "pydocs",
    steps: Annotated[int, typer.Option(help="Updates of each model.")] = 1000,
    seeds: Annotated[Optional[list[int]], typer.Option(help="Random seeds. Without any: 42, 123, 456.")] = None,
    results: Annotated[
        Path, typer.Option(help="Gets the JSON file and its figure.")
    ] = Path("results/confidence_experiments"),
):
    "The published confidence experiment: both models, held-out text, one JSON file, curves and a reliability diagram."
    from refine_nb._published_run import compare_on
    try: path, table = compare_on(text, steps, tuple(seeds or (42, 123, 456)), results)
    except (ValueError, FileNotFoundError) as error: raise stop(error) from None
    typer.echo(table)
    typer.echo(f"{path}, and its figure beside it")


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="method or experiment.")],
    name: Annotated[str, typer.Argument(help="Lower case letters, digits and underscores, such as token_merging.")],
    number: Annotated[int, typer.Option(help="A free number, where it belongs in reading order.")],
    root: Annotated[Path, typer.Option(help="A folder inside the project.", exists=True)] = Path("."),
):
    "Write a notebook that passes the house tests: a method and its line in the index, or an experiment and its sweep."
    from refine_nb._files import FileError
    from refine_nb._new import new as write
    from refine_nb._project import find_root
    top = find_root(root)
    with refusing():
        if top is None: raise FileError(f"{root.resolve()}: no folder above it holds experiments/")
        if kind not in ("method", "experiment"): raise FileError(f"{kind!r} is neither method nor experiment")
        for path in write(top, kind, name, number): typer.echo(path.relative_to(top))
    typer.echo("CONTRIBUTING.md says what comes next")


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, remove nothing.")] = False,
    unfinished: Annotated[bool, typer.Option(
        "--unfinished", help="Also attempts that a sweep would go on from: they begin anew.")] = False,
    runs: Annotated[Optional[Path], typer.Option(help="This folder of records and not the project's runs/.")] = None,
    root: Annotated[Path, typer.Option(help="A folder inside the project.", exists=True)] = Path("."),
):
    "Remove what runs left behind: logs of failures, replaced records, dead attempts. Never a published record."
    from refine_nb._clean import remove_waste, report, waste
    from refine_nb._project import find_root
    top = find_root(root)
    if top is None and runs is None: raise stop(ValueError(f"{root.resolve()}: no folder above it holds experiments/"))
    with refusing(): items = list(waste(runs or top / "runs", unfinished))
    for w in items if dry_run else (): typer.echo(f"{w.size:12,}  {w.kind:10}  {w.path}")
    with refusing(): items = items if dry_run else [w for w in items if remove_waste(w)]
    typer.echo(report(items) + (" would be removed" if dry_run else " removed"))


if __name__ == "__main__": app()
