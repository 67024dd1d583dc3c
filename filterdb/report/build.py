"""From a store to a folder with the report."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filterdb._version import __version__
from filterdb.errors import UsageError
from filterdb.files import disk_errors
from filterdb.report import data, html, pages
from filterdb.report.corpus import Corpus, load_corpus
from filterdb.report.layerwords import shorten
from filterdb.report.model import ModelPages, Report, ReportOptions, ReportSummary, Sentence
from filterdb.report.numbers import count, plural
from filterdb.report.sections import SECTIONS

if TYPE_CHECKING:
    from filterdb.report.sections.common import Part
    from filterdb.store import Store
    from filterdb.types import ProgressHook

#: Sentences of the Summary at most.
MOST_SENTENCES = 7
_MARK = "report.json"
_SOURCES = {".py", ".j2", ".css", ".js", ".woff2", ".ttf"}


def build_report(
    store: Store,
    out: str | os.PathLike[str],
    *,
    progress: ProgressHook | None = None,
    options: ReportOptions | None = None,
    model_pages: ModelPages | None = None,
    force: bool = False,
) -> ReportSummary:
    """Write the report on a store.

    Parameters
    ----------
    store
        Open store, analysed or not.
    out
        Folder to write; an earlier report in it is replaced, anything else is refused.
    progress
        Called with what is done.
    options
        How to build.
    model_pages
        Short for the option of that name.
    force
        Replace whatever is there, and build even where the report is up to date.

    Returns
    -------
    ReportSummary
        Where it is and how large; `up_to_date` where an equal report was there already.

    Raises
    ------
    UsageError
        `out` holds something that is not a report.
    PipelineError
        The folder cannot be written.
    """
    options = options or ReportOptions()
    if model_pages is not None:
        options = replace(options, model_pages=model_pages)
    tell = progress or _silent
    target = Path(out)
    stamp = _stamp(store, options)
    if not force:
        _check_target(target)
        made = _earlier(target, stamp)
        if made is not None:
            return made
    corpus = load_corpus(store, options)
    parts = _parts(corpus, tell)
    report = _report(corpus, parts)
    fresh = target.with_name(f"{target.name}.tmp{os.getpid()}")
    try:
        with disk_errors(target, what="the report"):
            shutil.rmtree(fresh, ignore_errors=True)
            (fresh / "data").mkdir(parents=True)
            models = _write_models(corpus, fresh, tell)
            _write_index(corpus, report, fresh, models, stamp)
            tell("data", 0, None)
            _write_data(corpus, report, fresh)
            _put_in_place(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    missing = tuple(m for part in parts for m in part.missing)
    return _summary_of(target, len(corpus.models), missing, up_to_date=False)


def _summary_of(
    target: Path, n_models: int, missing: tuple[str, ...], *, up_to_date: bool
) -> ReportSummary:
    files = [p for p in target.rglob("*") if p.is_file()]
    return ReportSummary(
        path=target / "index.html",
        n_models=n_models,
        n_pages=sum(p.parent.name == "models" for p in files),
        n_files=len(files),
        n_bytes=sum(p.stat().st_size for p in files),
        index_bytes=(target / "index.html").stat().st_size,
        missing=missing,
        up_to_date=up_to_date,
    )


def _stamp(store: Store, options: ReportOptions) -> dict[str, Any]:
    """Return what a report depends on: the store's commit, the options, this package's files."""
    digest = hashlib.sha256()
    here = Path(__file__).resolve().parent
    for path in sorted(p for p in here.rglob("*") if p.suffix in _SOURCES):
        digest.update(path.read_bytes())
    return {
        "store": store.fingerprint,
        "generation": store.generation,
        "options": asdict(options),
        "renderer": digest.hexdigest()[:16],
    }


def _earlier(target: Path, stamp: dict[str, Any]) -> ReportSummary | None:
    """Return the summary of the report that is there, if it is the one that would be built."""
    try:
        record = json.loads((target / _MARK).read_text(encoding="utf-8"))
        same = all(record[k] == v for k, v in stamp.items()) and record["date"] == _date()
        if not same or not (target / "index.html").is_file():
            return None
        return _summary_of(target, record["n_models"], tuple(record["missing"]), up_to_date=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _silent(what: str, done: int, total: int | None) -> None:
    """Say nothing."""
    del what, done, total


def _check_target(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()) and not (target / _MARK).is_file():
        raise UsageError(
            f"{target} holds files that are no report, expected an empty folder or an old report",
            tip="give another folder by --out",
        )
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, expected a folder", tip="give a folder by --out")


def _parts(corpus: Corpus, tell: ProgressHook) -> list[Part]:
    parts = []
    for done, section in enumerate(SECTIONS):
        tell("sections", done, len(SECTIONS))
        parts.append(section(corpus))
    tell("sections", len(SECTIONS), len(SECTIONS))
    return parts


def _report(corpus: Corpus, parts: list[Part]) -> Report:
    models, layers = corpus.models, corpus.layers
    title = "Convolution filters of one model" if len(models) == 1 else (
        f"Convolution filters of {count(len(models))} models"
    )  # fmt: skip
    lead = (
        f"{plural(len(layers), 'layer')}, {plural(models['task'].nunique(), 'task')}, "
        f"{plural(models['format'].nunique(), 'file format')}; every number here can be asked "
        "again of the store."
    )
    sections = tuple(p.section for p in parts if p.section is not None)
    return Report(title, lead, _summary(parts), sections)


def _summary(parts: list[Part]) -> tuple[Sentence, ...]:
    """Take each section's first headline, then second ones, in reading order, up to seven."""
    chosen: list[Sentence] = []
    for rank in range(3):
        for part in parts:
            if len(part.headlines) > rank and len(chosen) < MOST_SENTENCES:
                chosen.append(part.headlines[rank])
    order = {s.slug: i for i, s in enumerate(h for p in parts for h in p.headlines)}
    return tuple(sorted(chosen, key=lambda s: order[s.slug]))


def _write_models(corpus: Corpus, folder: Path, tell: ProgressHook) -> list[Sentence]:
    links = corpus.links.pages
    if not links:
        return []
    (folder / "models").mkdir()
    shared = pages.prepare(corpus)
    names = corpus.models.set_index("model_id")["name"].to_dict()
    order = list(links)
    sentences: list[Sentence] = []

    def neighbour(i: int) -> dict[str, str] | None:
        if not 0 <= i < len(order):
            return None
        return {"href": links[order[i]], "name": shorten(str(names[order[i]]), 40)}

    for i, model_id in enumerate(order):
        tell("model pages", i, len(order))
        context = pages.model_context(shared, model_id)
        sentences.extend(context["sentences"])
        text = html.model_page(
            context,
            store_name=corpus.options.store_name,
            previous=neighbour(i - 1),
            following=neighbour(i + 1),
        )
        (folder / "models" / links[model_id]).write_text(text, encoding="utf-8")
    tell("model pages", len(order), len(order))
    return sentences


def _write_index(
    corpus: Corpus,
    report: Report,
    folder: Path,
    models: list[Sentence],
    stamp: dict[str, Any],
) -> None:
    name = corpus.options.store_name
    text = html.index_page(report, store_name=name, date=_date())
    (folder / "index.html").write_text(text, encoding="utf-8")
    (folder / "report.md").write_text(html.markdown(report, store_name=name), encoding="utf-8")
    record = _record(corpus, report, models) | stamp
    dumped = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
    (folder / _MARK).write_text(dumped + "\n", encoding="utf-8")


def _date() -> str:
    """Return the day of SOURCE_DATE_EPOCH, or today's."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = (
        datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
        if epoch.isdigit()
        else datetime.datetime.now(datetime.UTC)
    )
    return moment.date().isoformat()


def _record(corpus: Corpus, report: Report, models: list[Sentence]) -> dict[str, Any]:
    return {
        "schema": 1,
        "filterdb": __version__,
        "n_models": len(corpus.models),
        "date": _date(),
        "missing": [f"Figure {f.label}: {f.missing}" for f in report.figures if f.missing],
        "summary": [s.slug for s in report.summary],
        "sentences": [html.sentence_record(s) for s in report.sentences],
        "figures": [
            {
                "slug": f.slug,
                "question": f.question,
                "caption": f.caption,
                "missing": f.missing or None,
                "data": None if f.missing or not f.rows else f"data/{f.file_stem}.csv",
            }
            for f in report.figures
        ],
        "models": [html.sentence_record(s) for s in models],
    }


def _write_data(corpus: Corpus, report: Report, folder: Path) -> None:
    for figure in report.figures:
        data.write_figure(folder / "data", figure)
    data.write_tables(folder / "data", corpus)
    (folder / "data" / "columns.md").write_text(data.columns_text(), encoding="utf-8")


def _put_in_place(fresh: Path, target: Path) -> None:
    """Put the new folder in the place of the old one."""
    old = target.with_name(f"{target.name}.old{os.getpid()}")
    if target.exists():
        target.rename(old)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
