"""Reads one YAML or JSON document from a file that nobody has checked yet, and writes one.

The dialect is YAML 1.1 as PyYAML reads it, with the numbers of YAML 1.2 (`2e-4` is a number, `010` is ten,
`1:30` is text) and without dates. Only plain values come out: no tag makes an object of Python.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from orchestrator.validation.problems import Problem, ProblemsError, show

MAX_BYTES = 2**20  # thousands of jobs; more would be minutes in the parser before a limit on values is reached
MAX_VALUES = 100_000
MAX_DEPTH = 40

_PREFIX = "tag:yaml.org,2002:"
_TOO_BIG = f"more than {MAX_VALUES:,} values (an alias counts each time), or more than {MAX_DEPTH} levels"
_KINDS = {"int": "a whole number of at most 64 bits", "float": "a number", "bool": "true or false"}
_BOOLEAN = re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_INTEGER = re.compile(r"(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


def read_document(path: Path) -> tuple[Any, list[Problem]]:
    """The one document of a file, and what is wrong with it without keeping it from being read.

    Args:
        path: A file in YAML, or in JSON when its name ends in `.json`.

    Raises:
        ProblemsError: The file cannot be read, is too large, or is not one document of plain values.
    """
    text = _read_text(path)
    try:
        value, doubled = (_parse_json if path.suffix.lower() == ".json" else _parse_yaml)(text)
    except _Unreadable as error:
        raise _refusal(path, str(error)) from None
    if value is None:
        raise _refusal(path, "is empty; write its fields, or do not give it")
    return value, [Problem(str(path), "", message) for message in doubled]


def write_document(value: Any) -> str:
    """Plain values as YAML that `read_document` and other YAML readers read back unchanged."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


class _Unreadable(Exception):
    """The text is no document; the message says where and why."""


def _refusal(path: Path, message: str) -> ProblemsError:
    return ProblemsError([Problem(str(path), "", message)])


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: the path holds a NUL
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refusal(path, f"cannot be read: {reason}; give a YAML or JSON file") from None
    if len(data) > MAX_BYTES:
        raise _refusal(path, f"is larger than {MAX_BYTES // 2**20} MiB; split it")
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _refusal(path, f"line {line}: is not UTF-8 text; save it as UTF-8") from None


def _parse_yaml(text: str) -> tuple[Any, list[str]]:
    try:
        loader = _Loader(text)
        if not loader.check_node():
            return None, []
        node = loader.get_node()
        if loader.check_node():
            line = loader.next_mark().line + 1
            raise _Unreadable(f"line {line}: a second document starts; give several jobs as a list under `jobs`")
        return loader.construct_document(node), loader.doubled
    except (
        ValueError,
        OverflowError,
    ) as error:  # PyYAML passes on what an escape such as "\UFFFFFFFF" raises
        raise _Unreadable(f"holds an escape or a directive that cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        raise _Unreadable(_syntax_message(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        character = f"U+{ord(text[error.position]):04X}"
        raise _Unreadable(f"line {line}, column {column}: the character {character} is not allowed") from None


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    message = f"{where}{error.problem or error.context}"
    if error.context and error.problem:
        message += f" ({error.context}"
        message += f" that starts on line {error.context_mark.line + 1})" if error.context_mark else ")"
    if "'\\t'" in message:
        message += "; indent with spaces"
    return " ".join(message.split())


class _Loader(yaml.SafeLoader):
    """Builds plain values only, and refuses what grows beyond the limits before it has grown."""

    # None of SafeLoader's rules: they are set below.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    yaml_constructors = {  # noqa: RUF012
        tag: function
        for tag, function in yaml.SafeLoader.yaml_constructors.items()
        if tag in {"tag:yaml.org,2002:" + name for name in ("null", "bool", "str", "seq", "map")}
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.doubled: list[str] = []
        self._depth = 0
        self._count = 0
        # Values and depth of every finished node with its aliases followed, by the node's id.
        self._extents: dict[int, tuple[int, int]] = {}

    def next_mark(self) -> Any:
        """Where the next event stands in the text."""
        return self.peek_event().start_mark  # type: ignore[no-untyped-call]

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.next_mark()
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH or self._count > MAX_VALUES:  # before PyYAML recurses deeper
            raise ConstructorError(None, None, _TOO_BIG, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if not is_alias:
            self._measure(node, mark)
        elif id(node) not in self._extents:
            raise ConstructorError(None, None, "an alias stands inside its own anchor", mark)
        return node

    def _measure(self, node: yaml.Node, mark: Any) -> None:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        extents = [self._extents[id(child)] for child in children]
        values = 1 + sum(values for values, _ in extents)
        depth = 1 + max((depth for _, depth in extents), default=0)
        if values > MAX_VALUES or depth > MAX_DEPTH:
            raise ConstructorError(None, None, _TOO_BIG, mark)
        self._extents[id(node)] = (values, depth)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    first = f"first on line {lines[name]}"
                    self.doubled.append(f"line {line}: the key {show(key.value)} is given twice ({first}); keep one")
                lines.setdefault(name, line)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError):
            kind = _KINDS.get(node.tag.removeprefix(_PREFIX), "a value")
            message = f"{show(node.value)} cannot be read as {kind}"
            raise ConstructorError(None, None, message, node.start_mark) from None

    def construct_integer(self, node: Any) -> int:
        """A whole number as YAML 1.2 writes it."""
        text = self.construct_scalar(node).replace("_", "")
        return _checked_integer(text, {"0x": 16, "0o": 8}.get(text[:2], 10))

    def construct_float(self, node: Any) -> float:
        """A number as YAML 1.2 writes it."""
        text = self.construct_scalar(node).replace("_", "").lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def refuse_tag(self, node: yaml.Node) -> Any:
        """Any tag but those of plain values."""
        message = f"the tag {show(node.tag.replace(_PREFIX, '!!'))} is not allowed; write a plain value"
        raise ConstructorError(None, None, message, node.start_mark)


def _checked_integer(text: str, base: int = 10) -> int:
    value = int(text, base) if len(text) < 100 else 2**64
    if abs(value) >= 2**63:
        raise ValueError(f"{show(text)} is too large a number")
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would read as a number, and writes a shared list out each time."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Text; line breaks are escaped, because PyYAML's plain quotes lose some of them."""
        style = '"' if re.search("[\n\r\x85\u2028\u2029]", text) else None
        return self.represent_scalar(_PREFIX + "str", text, style)


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_PREFIX + "int", _INTEGER, list("-+0123456789"))
    _class.add_implicit_resolver(_PREFIX + "float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver(_PREFIX + "null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_PREFIX + "bool", _BOOLEAN, list("yYnNtTfFoO"))
_Loader.add_implicit_resolver(_PREFIX + "merge", re.compile(r"<<$"), ["<"])
_Loader.add_constructor(_PREFIX + "int", _Loader.construct_integer)
_Loader.add_constructor(_PREFIX + "float", _Loader.construct_float)
_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor(None, _Loader.refuse_tag)


def _parse_json(text: str) -> tuple[Any, list[str]]:
    doubled: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                doubled.append(f"the key {show(key)} is given twice; keep one")
            result[key] = value
        return result

    try:
        value = json.loads(text, object_pairs_hook=mapping, parse_int=_checked_integer)
    except json.JSONDecodeError as error:
        if not text.strip():
            return None, []
        raise _Unreadable(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise _Unreadable(str(error)) from None
    except RecursionError:
        raise _Unreadable(_TOO_BIG) from None
    _check_extent(value)
    return value, doubled


def _check_extent(value: Any) -> None:
    level, count = [value], 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            break
    if level or count > MAX_VALUES:
        raise _Unreadable(_TOO_BIG)
