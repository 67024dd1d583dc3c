"""Follows TorchScript code from inputs to outputs without computing anything.

Every tensor is a name; every operator that reads one becomes a node. Conditions known from the
stored attributes are decided, both branches of the others are followed; loop bodies are followed
once. Steps, calls and nodes are bounded.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from filterdb.sources.formats.torchscript_archive import Archive
from filterdb.sources.formats.torchscript_builtins import BUILTINS, compute, truth
from filterdb.sources.formats.torchscript_code import CodeError, dotted
from filterdb.sources.formats.torchscript_ops import Call, flows
from filterdb.sources.formats.torchscript_values import (
    UNKNOWN,
    Callee,
    Flow,
    Instance,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from filterdb.sources.formats.pickle_values import Record


_Environment = dict[str, Value]


class _DeadEndError(Exception):
    """The code raises an exception here."""


class _Nothing:
    """A block that ends without returning."""


_NOTHING = _Nothing()


class Interpreter(Archive):
    """Follows one archive's code; constructed as :class:`Archive` is."""

    def run(self, root: Record) -> None:
        """Follow a model's ``forward``.

        Parameters
        ----------
        root
            The model.

        Raises
        ------
        CodeError
            The code cannot be followed.
        """
        model = self.convert(root, "")
        methods = self.methods(model.kind)[0] if isinstance(model, Instance) else {}
        forward = methods.get("forward")
        if forward is None:
            raise CodeError("no method called forward")
        inputs = [Flow(f"input.{argument.arg}") for argument in forward.args.args[1:]]
        try:
            self._invoke(forward, [model, *inputs], {}, "")
        except _DeadEndError:
            raise CodeError("forward always raises an exception") from None

    # -- stored values -------------------------------------------------------------------------

    def _attribute(self, owner: Value, name: str) -> Value:
        if not isinstance(owner, Instance):
            return UNKNOWN if not isinstance(owner, Flow) else owner
        if name in owner.own:
            return owner.own[name]
        if owner.record is not None:
            self._restore(owner, owner.record)
            if name not in owner.own:
                stored = owner.record.attributes()
                self.step(len(stored))
                for key, value in stored.items():
                    where = f"{owner.path}.{key}" if owner.path else key
                    owner.own.setdefault(key, self.convert(value, where))
        if name in owner.own:
            return owner.own[name]
        default = self.methods(owner.kind)[1].get(name)
        found = UNKNOWN if default is None else self._value(default, {})
        owner.own[name] = found
        return found

    def _restore(self, owner: Instance, record: Record) -> None:
        """Follow ``__setstate__`` of objects that are stored as something else than attributes."""
        if owner.restored:
            return
        owner.restored = True
        method = self.methods(owner.kind)[0].get("__setstate__")
        if method is not None and record.state is not None:
            state = self.convert(record.state, owner.path)
            self._invoke(method, [owner, state], {}, owner.path)

    # -- calls ---------------------------------------------------------------------------------

    def _invoke(
        self,
        function: ast.FunctionDef,
        arguments: Sequence[Value],
        keywords: Mapping[str, Value],
        path: str,
    ) -> Value:
        names = [argument.arg for argument in function.args.args]
        environment: _Environment = dict(zip(names, arguments, strict=False))
        environment |= keywords
        defaults = function.args.defaults
        for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True):
            if name not in environment:
                environment[name] = self._value(default, {})
        environment["\0path"] = path
        self.deeper(4)
        with self._code.held(function):
            result = self._block(function.body, environment)
        self._depth -= 4
        return None if isinstance(result, _Nothing) else result

    # -- statements ----------------------------------------------------------------------------

    def _block(self, body: Sequence[ast.stmt], environment: _Environment) -> Value:
        for statement in body:
            self.step()
            if isinstance(statement, ast.Return):
                return (
                    None if statement.value is None else self._value(statement.value, environment)
                )
            if isinstance(statement, ast.If):
                result = self._branch(statement, environment)
            elif isinstance(statement, ast.For | ast.While):
                result = self._loop(statement, environment)
            else:
                self._simple(statement, environment)
                continue
            if not isinstance(result, _Nothing):
                return result
        return _NOTHING

    def _simple(self, statement: ast.stmt, environment: _Environment) -> None:
        if isinstance(statement, ast.Assign):
            value = self._value(statement.value, environment)
            for target in statement.targets:
                self._assign(target, value, environment)
            self._in_place(statement.value, value, environment)
        elif isinstance(statement, ast.AnnAssign):
            value = self._value(statement.value, environment) if statement.value else UNKNOWN
            self._assign(statement.target, value, environment)
        elif isinstance(statement, ast.Expr):
            self._in_place(statement.value, self._value(statement.value, environment), environment)
        elif not isinstance(statement, ast.Pass):
            raise CodeError(f"a statement TorchScript does not have: {type(statement).__name__}")

    def _in_place(self, call: ast.expr, value: Value, environment: _Environment) -> None:
        """Let ``torch.add_(x, y)`` change what x stands for."""
        if not (isinstance(call, ast.Call) and isinstance(value, Flow) and call.args):
            return
        function, target = call.func, call.args[0]
        if not isinstance(function, ast.Attribute) or not isinstance(target, ast.Name):
            return
        if function.attr.endswith("_") and not function.attr.endswith("__"):
            environment[target.id] = value

    def _assign(self, target: ast.expr, value: Value, environment: _Environment) -> None:
        if isinstance(target, ast.Name):
            environment[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            n_parts = len(target.elts)
            known = isinstance(value, list | tuple) and len(value) == n_parts
            parts = value if known else [self._part(value)] * n_parts
            for element, part in zip(target.elts, parts, strict=True):
                self._assign(element, part, environment)
        elif isinstance(target, ast.Attribute):
            owner = self._value(target.value, environment)
            if isinstance(owner, Instance):
                owner.own[target.attr] = value
        elif isinstance(target, ast.Subscript):
            BUILTINS["_set_item"](
                [
                    self._value(target.value, environment),
                    self._value(target.slice, environment),
                    value,
                ]
            )

    def _branch(self, statement: ast.If, environment: _Environment) -> Value:
        known = truth(self._value(statement.test, environment))
        self.deeper(2)
        if known is not None:
            result = self._block(statement.body if known else statement.orelse, environment)
        else:
            result = self._both(statement, environment)
        self._depth -= 2
        return result

    def _both(self, statement: ast.If, environment: _Environment) -> Value:
        ends: list[tuple[Value, _Environment]] = []
        for block in (statement.body, statement.orelse):
            own = dict(environment)
            self.step(len(own) // 8)
            depth = self._depth
            try:
                ends.append((self._block(block, own), own))
            except _DeadEndError:
                self._depth = depth
        if not ends:
            raise _DeadEndError
        path = environment["\0path"]
        names = dict.fromkeys(name for _, own in ends for name in own)
        for name in names:
            values = [own[name] for _, own in ends if name in own]
            same = all(value is values[0] for value in values)
            environment[name] = values[0] if same else self._joined(values, path)
        results = [result for result, _ in ends]
        if all(isinstance(result, _Nothing) for result in results):
            return _NOTHING
        return self._joined([r for r in results if not isinstance(r, _Nothing)], path)

    def _joined(self, values: Sequence[Value], path: str) -> Value:
        """Join what two branches make; tuples part by part."""
        first = values[0]
        if all(type(v) is tuple and len(v) == len(first) for v in values) and len(first) < 64:
            return tuple(self.recorder.join(parts, path) for parts in zip(*values, strict=True))
        if all(type(v) in (bool, int, float, str) for v in values) and len(set(values)) > 1:
            return UNKNOWN
        return self.recorder.join(values, path)

    def _loop(self, statement: ast.For | ast.While, environment: _Environment) -> Value:
        if isinstance(statement, ast.For):
            source = self._value(statement.iter, environment)
            self._assign(statement.target, self._part(source), environment)
        else:
            self._value(statement.test, environment)
        # What the first round changes is unknown in all others.
        for name in _counters(statement):
            if type(environment.get(name)) in (bool, int, float):
                environment[name] = UNKNOWN
        self.deeper(2)
        result = self._block(statement.body, environment)
        self._depth -= 2
        return result

    # -- expressions ---------------------------------------------------------------------------

    def _part(self, value: Value) -> Value:
        """Return what stands for any one part of a value."""
        if isinstance(value, list | tuple | dict):
            parts = list(value.values() if isinstance(value, dict) else value)
            self.step(len(parts))
            if len(parts) == 1:
                return parts[0]
            tensors = [part for part in parts if next(flows(part), None) is not None]
            return self.recorder.join(tensors, "") if tensors else UNKNOWN
        return value if isinstance(value, Flow) else UNKNOWN

    def _value(self, node: ast.expr, environment: _Environment) -> Value:
        self.step()
        self.deeper(1)
        result = self._expression(node, environment)
        self._depth -= 1
        return result

    def _expression(self, node: ast.expr, environment: _Environment) -> Value:
        if isinstance(node, ast.Constant):
            value = node.value
            return value if value is None or type(value) in (bool, int, float, str) else UNKNOWN
        if isinstance(node, ast.Name):
            if node.id in environment:
                return environment[node.id]
            return UNKNOWN
        if isinstance(node, ast.Call):
            return self._call(node, environment)
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name is not None and name.partition(".")[0] not in environment:
                return self._global(name)
            return self._attribute(self._value(node.value, environment), node.attr)
        if isinstance(node, ast.Tuple):
            return tuple(self._value(part, environment) for part in node.elts)
        if isinstance(node, ast.List):
            return [self._value(part, environment) for part in node.elts]
        if isinstance(node, ast.Dict):
            made: dict[Any, Value] = {}
            for key, part in zip(node.keys, node.values, strict=True):
                known = self._value(key, environment) if key is not None else UNKNOWN
                made[known if type(known) in (str, int) else len(made)] = self._value(
                    part, environment
                )
            return made
        if isinstance(node, ast.Subscript):
            return self._subscript(node, environment)
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand, environment)
            if isinstance(node.op, ast.USub) and type(value) in (int, float):
                return -value
            return value if isinstance(value, Flow) else UNKNOWN
        if isinstance(node, ast.IfExp):
            known = truth(self._value(node.test, environment))
            if known is not None:
                return self._value(node.body if known else node.orelse, environment)
            both = [self._value(part, environment) for part in (node.body, node.orelse)]
            return self._joined(both, environment.get("\0path", ""))
        raise CodeError(f"an expression TorchScript does not have: {type(node).__name__}")

    def _global(self, name: str) -> Value:
        head, _, rest = name.partition(".")
        if head == "CONSTANTS" and rest[:1] == "c" and rest[1:].isdecimal() and len(rest) < 9:
            index = int(rest[1:])
            if index < len(self._constants):
                return self.convert(self._constants[index], "constants")
        return {"torch.inf": float("inf"), "torch.nan": float("nan")}.get(name, Callee(name))

    def _subscript(self, node: ast.Subscript, environment: _Environment) -> Value:
        value = self._value(node.value, environment)
        index = self._value(node.slice, environment)
        if isinstance(value, list | tuple) and type(index) is int:
            return value[index] if -len(value) <= index < len(value) else UNKNOWN
        if isinstance(value, dict) and type(index) in (str, int) and index in value:
            return value[index]
        return self._part(value)

    def _call(self, node: ast.Call, environment: _Environment) -> Value:
        function = node.func
        name = dotted(function)
        if name is not None and name.partition(".")[0] in environment:
            name = None
        if name in ("annotate", "unchecked_cast") and len(node.args) == 2:
            return self._value(node.args[1], environment)
        if name == "uninitialized":
            return UNKNOWN
        if name is None and isinstance(function, ast.Attribute):
            owner: Value = self._value(function.value, environment)
        else:
            owner = None
        arguments = [self._value(part, environment) for part in node.args]
        keywords = {k.arg: self._value(k.value, environment) for k in node.keywords if k.arg}
        path = environment.get("\0path", "")
        if isinstance(owner, Instance) and isinstance(function, ast.Attribute):
            return self._method(owner, function.attr, arguments, keywords)
        if name is None:
            found = self._value(function, environment)
            if not isinstance(found, Callee):
                return self.recorder.other(Call("call", "", arguments, keywords, path))
            name = found.name
        return self._named(name, arguments, keywords, path)

    def _method(
        self, owner: Instance, name: str, arguments: list[Value], keywords: dict[str, Value]
    ) -> Value:
        if owner.record is not None:
            self._restore(owner, owner.record)
        method = self.methods(owner.kind)[0].get(name)
        if method is None:
            return self.recorder.other(Call(name, "", arguments, keywords, owner.path))
        return self._invoke(method, [owner, *arguments], keywords, owner.path)

    def _named(
        self, name: str, arguments: list[Value], keywords: dict[str, Value], path: str
    ) -> Value:
        library, _, leaf = name.rpartition(".")
        if name == "ops.prim.RaiseException":
            raise _DeadEndError
        if library.startswith("__torch__"):
            return self._defined(name, arguments, keywords, path)
        if name == "getattr" and len(arguments) > 1 and type(arguments[1]) is str:
            return self._attribute(arguments[0], arguments[1])
        known = compute(leaf, arguments)
        if not isinstance(known, Unknown):
            return known
        call = Call(leaf, library.rpartition(".")[2] or "torch", arguments, keywords, path)
        return self.recorder.call(call)

    def _defined(
        self, name: str, arguments: list[Value], keywords: dict[str, Value], path: str
    ) -> Value:
        found = self._code.find(name)
        if isinstance(found, ast.FunctionDef):
            return self._invoke(found, arguments, keywords, path)
        if found is None:
            return self.recorder.other(Call(name, "", arguments, keywords, path))
        made = Instance(name, path, own={str(i): v for i, v in enumerate(arguments)})
        start = self.methods(name)[0].get("__init__")
        fields = [
            p.target.id
            for p in found.body
            if isinstance(p, ast.AnnAssign) and isinstance(p.target, ast.Name)
        ]
        if start is not None:
            self._invoke(start, [made, *arguments], keywords, path)
        else:
            # A named tuple: its fields are what it is made with.
            made.own.update(zip(fields, arguments, strict=False))
        return made


def _counters(loop: ast.For | ast.While) -> set[str]:
    """Return the names a loop's body assigns directly."""
    found: set[str] = set()
    for statement in loop.body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                found |= {part.id for part in parts if isinstance(part, ast.Name)}
    return found
