"""Commands in the report, safe to paste whatever the names in them are."""

from __future__ import annotations

import re
import shlex

#: What a shell acts upon between double quotes.
_ACTIVE = re.compile(r"[$`\\\"!\x00-\x1f\x7f]")


def shell_quoted(text: str) -> str:
    """Return a text as one argument of a shell command.

    Parameters
    ----------
    text
        An SQL query, a URI; layer and model names in it are as a file chose them.

    Returns
    -------
    str
        Between double quotes, which reads best around SQL; where a shell would act upon
        something between those, quoted so that it does not.
    """
    return shlex.quote(text) if _ACTIVE.search(text) else f'"{text}"'
