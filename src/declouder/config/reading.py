"""Recipes from YAML and `--set a.b=value`, and back; what is wrong with one is told in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from declouder.config.recipe import TrainConfig
from declouder.config.sections import STAGE_NAMES, DataConfig, StageConfig
from declouder.errors import ConfigError, reason_of

_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""PyYAML lets through what Python says of a date that does not exist and of a thousand brackets."""

_WANTED = {
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text",
    "path_type": "a path",
    "list_type": "a list",
    "dict_type": "fields with their values",
    "model_type": "fields with their values",
    "tuple_type": "a list of two numbers",
}
"""What is wanted where pydantic found another kind of value, by its name for that."""
_WANTED_BY_BOUND = {
    "expected": "one of {}",
    "ge": "{:g} or more",
    "gt": "more than {:g}",
    "le": "{:g} or less",
    "lt": "less than {:g}",
    "min_length": "{} or more of them",
    "max_length": "no more than {} of them",
}
"""What is wanted where a value is of the right kind and beyond a bound, by pydantic's name for the bound."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: "a.b=value" strings, such as "stages.joint.lr=1e-4"; values are read as YAML, and they win over
            the file.

    Returns:
        The recipe, every field checked and filled in.

    Raises:
        ConfigError: if the file cannot be read, a field is unknown or of no use where it stands, or a value does
            not fit. The message names the file and the field.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; give a recipe, such as those in the folder configs of declouder's repository,"
            " or what `declouder info --recipe` prints of a model"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a YAML file") from None
    except _NO_YAML as error:
        raise ConfigError(f"{path} is not YAML: {reason_of(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no fields; a recipe has name, model, data and stages")
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, source=str(path))


def parse_config(values: Mapping[str, Any], *, source: str) -> TrainConfig:
    """Return the typed recipe of plain values; `source` is named in errors.

    Raises:
        ConfigError: if a field is unknown, is missing, or has a value that it cannot have.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


def dump_config(config: TrainConfig) -> str:
    """Return the resolved recipe as YAML, every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def told_fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe, as plain values, sets otherwise than it is by default, by the names for --set.

    Steps and names, which have no default, are always among it.
    """
    stages = {name: {"steps": 1} for name in recipe["stages"]}
    least = {"name": "least", "data": {"procedural": 1, "synthetic_share": 1}, "stages": stages}
    defaults = _flat(parse_config(least, source="defaults").model_dump(mode="json"))
    for given in ("name", *(f"stages.{name}.steps" for name in stages)):
        del defaults[given]
    # What the least recipe had to say.
    for field in ("procedural", "synthetic_share"):
        defaults[f"data.{field}"] = DataConfig.model_fields[field].default
    recipe = {**recipe, "data": {**recipe["data"], "pairs": [_given(entry) for entry in recipe["data"]["pairs"]]}}
    missing = object()
    return {name: value for name, value in _flat(recipe).items() if defaults.get(name, missing) != value}


class _Loader(yaml.SafeLoader):
    """Reads plain YAML in which no field is named twice, and numbers as people write them.

    PyYAML would take the last of such fields in silence, 010 for 8, 1:30 for 90 and 1e-4 for text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is named twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_INT, _FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_constructor(_INT, lambda _, node: int(node.value))


def _given(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def _flat(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{place}{key}.") if isinstance(value, dict) else {f"{place}{key}": value}
    return found


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override} is not of the form a.b=value, such as stages.joint.lr=1e-4")
    try:
        value = yaml.load(text, Loader=_Loader)
    except _NO_YAML as error:
        problem = getattr(error, "problem", None)
        told = f" ({problem})" if problem else ""
        raise ConfigError(f"--set {key}: {_short(text)} is not a YAML value{told}; mend or quote it") from None
    *parents, last = key.split(".")
    node = values
    for depth, part in enumerate(parents):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parents[: depth + 1])} holds a value, not fields")
        node = child
    node[last] = value


def _explain(error: ValidationError) -> str:
    found = error.errors()
    # A field that is misspelt is missing as well.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _fields_at(first["loc"][:-1]), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(_fields_at(first['loc'][:-1]))}"
        return f"{where} is not a field; {hint}"
    if first["type"] == "missing":
        if isinstance(first["loc"][-1], int):  # a place in a list of a given length
            return f"{where.rpartition('.')[0]} is {_short(first['input'])}, which is too short; give one more"
        return f"{where} is missing; every recipe gives it"
    if "[key]" in first["loc"] and first["loc"][0] == "stages":
        near = difflib.get_close_matches(where.rpartition(".")[2], STAGE_NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {first['ctx']['expected']}"
        return f"{where} is not a field; {hint}"
    if wanted := _wanted(first):
        return f"{where} is {_short(first['input'])}; give {wanted}"
    # What the whole recipe was found to be says nothing.
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict):  # of a whole section the sentence says what it is about
        return f"{where}: {message}" if where else message
    return f"{where}: {message}, found {_short(first['input'])}" if where else message


def _wanted(error: Mapping[str, Any]) -> str | None:
    """Return what is wanted in place of a value, by what pydantic found wrong; None if it says more itself."""
    found, bounds = error["input"], error.get("ctx", {})
    if error["type"] == "list_type" and isinstance(found, str | int | float):
        return f"a list, such as [{found}]"
    for name, words in _WANTED_BY_BOUND.items():
        if name in bounds:
            return words.format(bounds[name])
    return _WANTED.get(error["type"])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(location: Iterable[int | str]) -> list[str]:
    """Return the names of the fields that stand where an unknown one was found."""
    parts = list(location)
    model: Any = TrainConfig
    if parts[:1] == ["stages"]:
        model, parts = StageConfig, parts[2:]
    for part in parts:
        # A number is a place in a list: the list's entries have the fields.
        model = _entry_of(model) if isinstance(part, int) else model.model_fields[part].annotation
    return list(model.model_fields)


def _entry_of(annotation: Any) -> Any:
    entry = get_args(annotation)[0]
    return get_args(entry)[0] if get_args(entry) else entry
