"""Names, arguments and fields that a program takes from the library, checked without running it."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

PACKAGE = "goat_jax"


def code_of(cell) -> str:
    """A cell's code without the lines that are IPython's own."""
    lines = cell["source"].splitlines()
    return "\n".join("" if line.startswith(("%", "!")) else line for line in lines)


def problems(code: str) -> list[str]:
    """Lists, by line, the names that a program uses and the library does not have.

    Types follow imports, calls with annotated results, fields and `dataclasses.replace`; what
    comes from elsewhere is not looked at.

    >>> problems("import goat_jax\\ngoat_jax.method_spek('goat')")
    ['2: goat_jax has no method_spek']
    """
    reader = _Reader()
    reader.visit(ast.parse(code))
    return reader.problems


@dataclasses.dataclass(frozen=True)
class _Known:
    """An object of the library, or any instance of a class.

    Attributes:
        thing: the object, or the class.
        made: whether an instance of the class is meant.
    """

    thing: Any
    made: bool = False

    @property
    def name(self) -> str:
        return getattr(self.thing, "__name__", type(self.thing).__name__)

    def has(self, attribute: str) -> bool:
        if hasattr(self.thing, attribute):
            return True
        # Other classes may set attributes when they are made.
        return self.made and (
            not dataclasses.is_dataclass(self.thing) or attribute in _hints(self.thing)
        )

    def attribute(self, name: str) -> "_Known | None":
        if self.made:
            found = getattr(self.thing, name, None)
            if isinstance(found, property):
                return _instance(_hints(found.fget).get("return"))
            return _instance(_hints(self.thing).get(name))
        return _Known(getattr(self.thing, name)) if hasattr(self.thing, name) else None


def _hints(thing: Any) -> Mapping[str, Any]:
    with contextlib.suppress(NameError, TypeError):
        return typing.get_type_hints(thing)
    return {}


def _instance(hint: Any) -> _Known | None:
    return _Known(hint, made=True) if isinstance(hint, type) else None


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.names: dict[str, _Known] = {}
        self.problems: list[str] = []

    def _say(self, node: Any, text: str) -> None:
        self.problems.append(f"{node.lineno}: {text}")

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            root = alias.name.partition(".")[0]
            if root in (PACKAGE, "dataclasses"):
                whole = importlib.import_module(alias.name)
                known = whole if alias.asname else importlib.import_module(root)
                self.names[alias.asname or root] = _Known(known)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").partition(".")[0] != PACKAGE:
            return
        try:
            module = importlib.import_module(node.module or "")
        except ModuleNotFoundError:
            return self._say(node, f"there is no module {node.module}")
        for alias in node.names:
            if hasattr(module, alias.name):
                self.names[alias.asname or alias.name] = _Known(getattr(module, alias.name))
            else:
                self._say(node, f"{node.module} has no {alias.name}")

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        known = self._known(node.value)
        for target in node.targets:
            self.visit(target)
            if isinstance(target, ast.Name) and known is not None:
                self.names[target.id] = known

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.names.pop(node.id, None)

    def visit_arg(self, node: ast.arg) -> None:
        self.names.pop(node.arg, None)

    def _inside(self, *nodes: ast.AST) -> None:
        """Visits nodes whose names are their own."""
        outside = dict(self.names)
        for node in nodes:
            self.visit(node)
        self.names = outside

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inside(*node.decorator_list, node.args, *node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._inside(node.args, node.body)

    def visit_ListComp(self, node: Any) -> None:
        parts = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
        self._inside(*node.generators, *parts)

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self._known(node.value)
        if owner is not None and not owner.has(node.attr):
            self._say(node, f"{owner.name} has no {node.attr}")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)
        owner, key = self._known(node.value), node.slice
        if owner is None or owner.made or not isinstance(key, ast.Constant):
            return
        if isinstance(owner.thing, Mapping) and key.value not in owner.thing:
            self._say(node, f"there is no {key.value!r}")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = self._known(node.func)
        if function is None or function.made or not callable(function.thing):
            return
        given = {word.arg for word in node.keywords if word.arg is not None}
        if function.thing is dataclasses.replace:
            owner = self._known(node.args[0])
            fields = given if owner is None else {f.name for f in dataclasses.fields(owner.thing)}
            for word in sorted(given - fields):
                self._say(node, f"{owner.name if owner else ''} has no field {word}")
            return
        if any(isinstance(each, ast.Starred) for each in node.args):
            return
        with contextlib.suppress(ValueError):  # a signature that is not known
            signature = inspect.signature(function.thing)
            try:
                signature.bind_partial(*node.args, **dict.fromkeys(given))
            except TypeError as error:
                self._say(node, f"{function.name}: {error}")

    def _known(self, node: ast.AST) -> _Known | None:
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._known(node.value)
            return None if owner is None else owner.attribute(node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner = self._known(node.value)
            if owner is None or owner.made or not isinstance(owner.thing, Mapping):
                return None
            found = owner.thing.get(node.slice.value)
            return None if found is None else _Known(found)
        if isinstance(node, ast.Call):
            function = self._known(node.func)
            if function is None or function.made:
                return None
            if function.thing is dataclasses.replace:
                return self._known(node.args[0])
            if isinstance(function.thing, type):
                return _instance(function.thing)
            return _instance(_hints(function.thing).get("return"))
        return None
