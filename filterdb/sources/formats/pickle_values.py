"""What the inert pickle reader builds: records that do nothing, and the names it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Global:
    """A name a pickle asks for. It is never imported.

    Parameters
    ----------
    module, name
        As the pickle writes them ("torch._utils", "_rebuild_tensor_v2").
    """

    module: str
    name: str

    @property
    def path(self) -> str:
        """Module and name joined by a dot."""
        return f"{self.module}.{self.name}"


class PersistentId:
    """What a pickle expects its reader to supply (torch: a storage, or a class with its source)."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Table:
    """A dictionary as a list of pairs.

    Pairs are never hashed: keys a file chooses cannot make look-ups quadratic, and deeply nested
    keys cannot overflow the interpreter's stack.
    """

    __slots__ = ("kind", "pairs", "state")

    def __init__(self, kind: Global | None = None) -> None:
        self.kind = kind
        self.pairs: list[tuple[Any, Any]] = []
        self.state: Any = None

    def named(self) -> dict[str, Any]:
        """Return the pairs whose key is a string; the last of equal keys wins, as in a dict."""
        return {key: value for key, value in self.pairs if type(key) is str}


class Record:
    """An object a pickle would have made by calling something; here nothing was called."""

    __slots__ = ("args", "constructor", "items", "pairs", "state")

    def __init__(self, constructor: Any, args: Any = ()) -> None:
        self.constructor = constructor
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []
        self.pairs: list[tuple[Any, Any]] = []

    @property
    def kind(self) -> Global | None:
        """The global that would have been called, through torch's ("module", class, …) ids."""
        maker = self.constructor
        if isinstance(maker, PersistentId):
            value = maker.value
            if isinstance(value, tuple) and len(value) > 1 and value[0] == "module":
                maker = value[1]
        return maker if isinstance(maker, Global) else None

    def attributes(self) -> dict[str, Any]:
        """Return the instance dictionary (and slots) the pickle gives, with string keys."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        found: dict[str, Any] = {}
        for part in parts[:2]:
            if isinstance(part, Table):
                found.update(part.named())
        return found


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Packages nothing of which belongs into a checkpoint: they run programs or code, load libraries or
#: other pickles, or reach the network. Their submodules are meant too.
_REFUSED_PACKAGES = _words(
    "os posix nt subprocess pty sys importlib imp runpy shutil socket ctypes _ctypes webbrowser "
    "pickle _pickle cPickle marshal asyncio commands popen2 pip pipes pydoc distutils setuptools "
    "http urllib urllib2 urllib3 httplib requests ftplib smtplib telnetlib paramiko socketserver "
    "xmlrpc logging.config zipimport pkgutil ensurepip torch.hub torch.utils.cpp_extension "
    "torch._inductor torch.utils.model_zoo numpy.testing numpy.f2py numpy.distutils"
)
#: The same, but only the modules themselves: a researcher's folder may well be called "code".
_REFUSED_MODULES = _words("code codeop pdb bdb timeit cProfile profile trace doctest site")
_REFUSED_BUILTINS = _words(
    "eval exec execfile compile open file __import__ input raw_input breakpoint globals locals "
    "vars setattr delattr apply reload exit quit help"
)
#: ``getattr`` is not among them: pickles of bound methods hold it honestly, and here it is a record
#: like any other. The names it would reach are checked instead (:func:`refused`).
_BUILTIN_MODULES = frozenset(("builtins", "__builtin__", "__builtins__"))
_REFUSED_NAMES = _words(
    "system popen Popen execv execve execvp execl execlp spawnl spawnv spawnve spawnv_passfds "
    "check_output check_call getoutput getstatusoutput startfile __import__ __globals__ "
    "__builtins__ __subclasses__ __code__ __loader__ import_module runstring"
)
_REFUSED_STEPS = _words(
    "os posix nt subprocess sys builtins __builtin__ importlib ctypes pty shutil socket pickle "
    "marshal runpy"
)
_REFUSED_PATHS = _words(
    "torch.load torch.jit.load torch.serialization.load numpy.load joblib.load dill.loads "
    "dill._dill.loads cloudpickle.loads cloudpickle.cloudpickle.loads"
)


def refused(module: str, name: str) -> bool:
    """Tell whether a global has no business in a checkpoint.

    Nothing is executed either way; this decides whether a file is worth reading at all.

    Parameters
    ----------
    module, name
        As in :class:`Global`; `name` may be dotted.

    Returns
    -------
    bool
        True for what runs programs, code or other pickles.
    """
    parts = module.split(".")
    if any(".".join(parts[:n]) in _REFUSED_PACKAGES for n in range(1, min(len(parts), 4) + 1)):
        return True
    if module in _REFUSED_MODULES:
        return True
    steps = name.split(".")
    if module in _BUILTIN_MODULES and steps[0] in _REFUSED_BUILTINS:
        return True
    return (
        not _REFUSED_STEPS.isdisjoint(steps)
        or not _REFUSED_NAMES.isdisjoint(steps)
        or f"{module}.{name}" in _REFUSED_PATHS
    )
