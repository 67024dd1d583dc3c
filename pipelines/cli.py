"""``filterdb``: one function a command, errors turned into words and exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from filterdb.errors import FilterDBError, PipelineError
from pipelines.arguments import build_parser, wants_json
from pipelines.console import Console

#: Exit codes of schema.md.
DONE, ERROR, USAGE, FAILED_MODELS, FAIL_ON, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Parameters
    ----------
    arguments
        Words after ``filterdb``; default those of the process.

    Returns
    -------
    int
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    console = Console(quiet="--quiet" in words or "-q" in words)
    code = DONE
    try:
        try:
            code = _answer(words, console)
        finally:
            # A closed pipe or a full disk shows itself at the latest here, where it can be caught.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head) has had enough.
        _drop_output()
        return code
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        console.error(PipelineError(f"cannot go on: {place}{error.strerror or error}"))
        _drop_output()
        return ERROR
    return code


def _answer(words: list[str], console: Console) -> int:
    try:
        return _dispatch(words)
    except FilterDBError as error:
        return _refuse(error, words, console)
    except MemoryError:
        tip = "give it more, or fewer --workers; the same command goes on where it left off"
        return _refuse(PipelineError("there is not enough memory", tip=tip), words, console)
    except KeyboardInterrupt:
        goes_on = not {"extract", "demo", "survey"}.isdisjoint(words)
        console.say("stopped; the same command goes on where it left off" if goes_on else "stopped")
        _leave()


def _leave() -> NoReturn:
    """End the process at once: worker threads may be deep in a download or a product.

    Nothing they hold is half written. Only multiprocessing has to tidy up first, or its resource
    tracker, a process of its own, complains of semaphores nobody freed.
    """
    tidy = getattr(sys.modules.get("multiprocessing.util"), "_exit_function", None)
    if tidy is not None:
        tidy()
    os._exit(INTERRUPTED)


def _refuse(error: FilterDBError, words: list[str], console: Console) -> int:
    console.error(error)
    if wants_json(words):
        record = {"type": type(error).__name__, "message": error.message, "tip": error.tip}
        try:
            print(json.dumps({"error": record}), flush=True)
        except BrokenPipeError:  # still an error
            _drop_output()
    return error.exit_code


def _open_closed_streams() -> None:
    """Give print and isatty something where the caller closed a stream (``>&-``)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _drop_output() -> None:
    """Keep the interpreter from complaining at exit of what it could not write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    parser = build_parser()
    options = parser.parse(words)
    if options.command is None:
        parser.print_help()
        return USAGE
    options.quiet = getattr(options, "quiet", False)
    console = Console(quiet=options.quiet, show_progress=not getattr(options, "no_progress", False))
    return COMMANDS[options.command](options, console)


def _demo(options: argparse.Namespace, console: Console) -> int:
    from pipelines import demo

    return demo.run(
        options.out,
        scheduler=options.scheduler,
        n_workers=options.workers,
        cache_path=options.cache,
        console=console,
    )


def _catalog(options: argparse.Namespace, console: Console) -> int:
    from pipelines import catalogues

    return catalogues.run(
        options.action, options.target, select=options.select, as_json=options.json, console=console
    )


def _extract(options: argparse.Namespace, console: Console) -> int:
    from filterdb.engine import parse_cluster
    from pipelines import extract_filters

    config = extract_filters.ExtractConfig(
        catalogue=options.catalogue,
        store_path=options.store,
        select=options.select,
        cluster=parse_cluster(options.scheduler, options.workers),
        retry_failed=options.retry_failed,
        cache_path=options.cache,
    )
    if options.dry_run:
        return extract_filters.dry_run(config, console=console)
    return extract_filters.run(config, console=console)


def _analyze(options: argparse.Namespace, console: Console) -> int:
    from filterdb.engine import parse_cluster
    from pipelines import analyse

    return analyse.run(
        options.store,
        by=options.by,
        compat=options.compat,
        cluster=parse_cluster(options.scheduler, options.workers),
        console=console,
    )


def _report(options: argparse.Namespace, console: Console) -> int:
    from pipelines import build_report

    return build_report.run(
        options.store,
        options.out,
        model_pages=options.model_pages,
        force=options.force,
        console=console,
    )


def _query(options: argparse.Namespace, console: Console) -> int:
    from pipelines import query

    return query.run(options.store, options.sql, output_format=options.format, console=console)


def _inspect(options: argparse.Namespace, console: Console) -> int:
    from pipelines import inspect_checkpoint

    return inspect_checkpoint.run(
        options.source,
        against=options.against,
        layer=options.layer,
        as_json=options.json,
        fail_on=options.fail_on,
        cache_path=options.cache,
        console=console,
    )


def _compare(options: argparse.Namespace, console: Console) -> int:
    from pipelines import compare_checkpoints

    return compare_checkpoints.run(
        options.first,
        options.second,
        as_json=options.json,
        picture=options.picture,
        cache_path=options.cache,
        console=console,
    )


def _survey(options: argparse.Namespace, console: Console) -> int:
    from filterdb.engine import parse_cluster
    from pipelines import survey_files

    config = survey_files.SurveyConfig(
        list_path=options.list,
        out=options.out,
        notes=options.notes,
        cluster=parse_cluster(options.scheduler, options.workers),
        cache_path=options.cache,
    )
    return survey_files.run(config, console=console)


def _verify(options: argparse.Namespace, console: Console) -> int:
    from pipelines import verify_store

    return verify_store.run(options.store, console=console)


def _cache(options: argparse.Namespace, console: Console) -> int:
    from pipelines import cache_admin

    return cache_admin.run(
        options.action, cache_path=options.cache, as_json=options.json, console=console
    )


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "demo": _demo,
    "catalog": _catalog,
    "extract": _extract,
    "analyze": _analyze,
    "report": _report,
    "query": _query,
    "inspect": _inspect,
    "compare": _compare,
    "survey": _survey,
    "verify": _verify,
    "cache": _cache,
}

if __name__ == "__main__":
    sys.exit(main())
