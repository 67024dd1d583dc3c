"""Every exception filterdb raises, in one tree.

An error says what happened, where, what was expected, what was found, and what to do (``tip``).
Each class also inherits the builtin a caller would catch without knowing filterdb.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FilterDBError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    message
        What, where, expected, got; one paragraph without a final full stop.
    tip
        What to do about it, if there is something to do.
    """

    #: Exit code of the command line for this error (1 error, 2 usage).
    exit_code = 1

    def __init__(self, message: str, *, tip: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.tip = tip

    def __str__(self) -> str:
        return self.message if self.tip is None else f"{self.message} ({self.tip})"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders in dask; keyword-only arguments need help to pickle.
        return (_rebuild, (type(self), self.message, self.tip, dict(self.__dict__)))


def _rebuild(
    cls: type[FilterDBError], message: str, tip: str | None, attributes: dict[str, object]
) -> FilterDBError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.message, error.tip = message, tip
    error.__dict__.update(attributes)
    return error


class UsageError(FilterDBError, ValueError):
    """The caller asked for something that does not exist or cannot be combined."""

    exit_code = 2


class UnknownNameError(UsageError, KeyError):
    """A word that is not in a closed list; the message names the nearest ones.

    Parameters
    ----------
    kind
        What the word should have been: "column", "model", "kernel".
    word
        The word as given.
    known
        The words there are.
    where
        Where they live: "layers", "catalogue demo".
    """

    def __init__(self, kind: str, word: str, known: Iterable[str], *, where: str = "") -> None:
        names = sorted(set(known))
        close = nearest(word, names)
        place = f" in {where}" if where else ""
        some = ", ".join(close or names[:8])
        label = "nearest" if close else "there are"
        more = f" ({len(names)} in all)" if len(names) > len(close or names[:8]) else ""
        FilterDBError.__init__(
            self,
            f"no {kind} {word!r}{place}",
            tip=f"{label}: {some}{more}" if names else f"there is no {kind} at all",
        )
        self.nearest = close


class CatalogError(FilterDBError, ValueError):
    """A catalogue that cannot be read as it stands."""

    exit_code = 2


class SourceError(FilterDBError):
    """A model file that cannot be had or cannot be read."""


class FetchError(SourceError, OSError):
    """The network or the disk failed; the only error worth trying again."""


class HashMismatchError(SourceError, ValueError):
    """The bytes are not those the catalogue names."""


class UnsupportedFormatError(SourceError, ValueError):
    """No reader knows this file, or it uses a feature no reader knows."""


class MalformedFileError(SourceError, ValueError):
    """The file claims a format and breaks its rules: truncated, overlapping, absurd sizes."""


class MissingCompanionError(SourceError, FileNotFoundError):
    """A file that belongs to the model (ncnn's .bin, tfjs' shards) is not there."""


class UnsafeCheckpointError(SourceError, ValueError):
    """The file asks for code to be run, or breaks a bound that protects the machine."""


class LayerError(FilterDBError, ValueError):
    """Tensors that do not make the convolution they claim to be."""


class StoreError(FilterDBError):
    """A store that cannot be used."""


class StoreExistsError(StoreError, FileExistsError):
    """Something is there already, or another job is writing."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """No store at this path."""


class FormatVersionError(StoreError, ValueError):
    """The store was written in a format version this filterdb does not read."""


class IncompleteStoreError(StoreError):
    """The store lacks something this question needs (not extracted, not analysed)."""


class CorruptShardError(StoreError, OSError):
    """A file of the store is not the one the manifest describes."""


class AnalysisError(FilterDBError, ValueError):
    """An analysis that cannot be computed from what is there."""


class PipelineError(FilterDBError):
    """A job that cannot go on (disk full, folder not writable)."""


def nearest(word: str, known: Iterable[str], *, n: int = 3) -> list[str]:
    """Return the at most `n` words of `known` that look most like `word`.

    Parameters
    ----------
    word
        The word that was not found.
    known
        The words there are.
    n
        How many at most.

    Returns
    -------
    list of str
        Closest first; empty where nothing is close.
    """
    by_fold = {k.casefold(): k for k in known}
    hits = difflib.get_close_matches(word.casefold(), list(by_fold), n=n, cutoff=0.5)
    return [by_fold[h] for h in hits]
