"""``timm:arch.tag`` — pretrained weights by timm's name of them.

timm keeps each tag in a repository of that name, so that the name alone is enough; timm itself
(twelve seconds of import) is asked only where there is no such repository, or no tag.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from filterdb.catalog.uri import SourceUri
from filterdb.errors import SourceError, UnknownNameError
from filterdb.sources.origins import hub

if TYPE_CHECKING:
    from filterdb.sources.origins import Request
    from filterdb.sources.stored import Stored

_WEIGHTS = "model.safetensors"


def obtain(request: Request) -> Stored:
    """Fetch pretrained weights from the hub.

    Parameters
    ----------
    request
        ``timm:arch[.tag]``; timm's default tag where none is given.

    Returns
    -------
    Stored
        Its `uri` is the ``hf:`` URI with the commit.

    Raises
    ------
    UnknownNameError
        Where timm knows no such architecture or tag.
    SourceError
        Where timm keeps these weights elsewhere than on the hub.
    FetchError
        Where the network failed.
    """
    name = request.uri.body
    if "." in name:
        try:
            return _from_hub(request, f"timm/{name}", _WEIGHTS)
        except hub.NotOnHubError:
            pass
    repository, file_name = _ask_timm(name)
    return _from_hub(request, repository, file_name)


def _from_hub(request: Request, repository: str, file_name: str) -> Stored:
    uri = SourceUri("hf", f"{repository}@main", (), (file_name,))
    return hub.obtain(replace(request, uri=uri))


def _ask_timm(name: str) -> tuple[str, str]:
    import timm

    arch = name.partition(".")[0]
    if not timm.is_model(arch):
        raise UnknownNameError("architecture", arch, timm.list_models(), where="timm")
    tagged = timm.list_pretrained(f"{arch}.*") + timm.list_pretrained(arch)
    if "." in name and name not in tagged:
        raise UnknownNameError("pretrained weights", name, tagged, where="timm")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise SourceError(f"timm keeps no weights of {name} on the hub")
    repository = str(config.hf_hub_id)
    # timm writes "timm/" alone where the repository is named as the tag.
    if repository.endswith("/"):
        repository += f"{arch}.{config.tag}" if config.tag else arch
    return repository, str(config.hf_hub_filename or _WEIGHTS)


ORIGIN = obtain
