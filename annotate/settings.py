"""How every configuration is written, read and overridden: pydantic models in YAML files.

`Config` is the base of the typed settings of all three packages and `load_config` reads one from a
YAML file with ``dotted.key=value`` overrides. Nothing here imports torch: help texts and
configuration errors answer at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

__all__ = [
    "Config",
    "ConfigError",
    "changed_settings",
    "configs_folder",
    "dump_config",
    "find_config",
    "flatten_config",
    "load_config",
    "parse_config",
    "read_settings",
]


class Config(BaseModel):
    """Base of every configuration: immutable; an unknown key, an infinite number and a switch that
    stands for a number are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, settings: Any) -> Any:
        # pydantic takes true for 1, and YAML reads true in on and yes. The word is refused in the
        # field's own place.
        if not isinstance(settings, dict):
            return settings
        fields = cls.model_fields
        return {
            name: str(value).lower()
            if isinstance(value, bool) and name in fields and _takes_numbers(fields[name])
            else value
            for name, value in settings.items()
        }


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names each field's path and its choices."""


C = TypeVar("C", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML that reads ``1e-5`` as a number (YAML 1.1 wants ``1.0e-5``) and refuses double keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} stands twice (line {line})"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def configs_folder() -> Path:
    """The folder of the YAML and JSON files that ship with Winsome.

    In a checkout it is ``configs/`` beside the packages; a wheel carries it inside this package.
    """
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(path: str | Path) -> Path:
    """``path`` itself, or the shipped file if the working folder has no ``configs/...`` like it."""
    path = Path(path)
    if not path.exists() and path.parts[:1] == ("configs",):
        shipped = configs_folder().joinpath(*path.parts[1:])
        return shipped if shipped.is_file() else path
    return path


def load_config(cls: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read the YAML file at ``path``, apply ``dotted.key=value`` overrides, validate into ``cls``.

    An override's value is YAML too (``lr=1e-5``, ``lora=null``, ``prompts=[a, b]``). A mapping that
    the file leaves out or sets to null is created on the way.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ConfigError: bad YAML, a malformed override, an unknown key or a value out of range; the
            message names the file, the dotted path of each fault and the valid choices.
    """
    path = find_config(path)
    tree = read_settings(path)
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(cls, tree, source=str(path))


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, {} for an empty one, before any model has validated it.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ConfigError: it is not YAML, or no mapping.
    """
    if not path.is_file():
        folder = path.parent
        if not folder.is_dir() and path.parts[:1] == ("configs",):
            folder = configs_folder().joinpath(*path.parts[1:-1])
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise FileNotFoundError(f"no configuration file at {path}{hint}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, got {type(tree).__name__}")
    return tree


def parse_config(cls: type[C], tree: Mapping[str, Any], source: str = "") -> C:
    """Validate a mapping into ``cls``; faults raise `ConfigError` with their dotted paths."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        details = error.errors()
        # A list whose items are all wrong is also too short, which is no fault of its own.
        below = {detail["loc"][:n] for detail in details for n in range(len(detail["loc"]))}
        faults = [
            _describe(cls, detail)
            for detail in details
            if detail["type"] != "too_short" or detail["loc"] not in below
        ]
        raise ConfigError("\n  ".join([f"{source or cls.__name__}:", *faults])) from error


def dump_config(config: BaseModel) -> str:
    """The configuration as YAML text which `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten_config(config: BaseModel) -> dict[str, Any]:
    """The configuration as ``{"dotted.key": value}``, for comparison and for trackers."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            flat[prefix] = value

    visit("", config.model_dump(mode="json"))
    return flat


def changed_settings(stored: BaseModel, asked: BaseModel, free: Collection[str] = ()) -> list[str]:
    """What differs between two configurations, a text ``key: old there, new asked`` each.

    Args:
        free: dotted keys that may differ, with all that lies below them.
    """
    there, here = flatten_config(stored), flatten_config(asked)
    return [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} asked"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
        and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {override!r} is not of the form dotted.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r} holds invalid YAML: {error}") from error
    *parents, leaf = dotted.split(".")
    node = tree
    for depth, parent in enumerate(parents, start=1):
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            where = ".".join(parents[:depth])
            raise ConfigError(f"override {override!r}: {where} is {child!r}, which has no keys")
        node = child
    node[leaf] = value


def _describe(cls: type[BaseModel], detail: ErrorDetails) -> str:
    """One fault as ``path: what is wrong (choices)``."""
    location = detail["loc"]
    if detail["type"] != "extra_forbidden":
        is_whole = detail["type"] == "missing" or isinstance(detail["input"], Mapping)
        got = "" if is_whole else f" (got {detail['input']!r})"
        message = detail["msg"].removeprefix("Value error, ")
        owner = _resolve(cls, location)
        if detail["type"] == "model_type" and owner is not None:
            message = f"must hold settings of its own: {', '.join(sorted(owner.model_fields))}"
        return f"{_dotted(cls, location) or 'settings'}: {message}{got}"
    *parents, name = location
    owner = _resolve(cls, parents)
    choices = sorted(owner.model_fields) if owner else []
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{_dotted(cls, location)}: unknown setting; {hint}valid choices: {', '.join(choices)}"


def _dotted(cls: type[BaseModel], location: Sequence[int | str]) -> str:
    """The path as it is written in the file: a union's tags, which pydantic adds, are left out."""
    parts: list[str] = []
    for index, part in enumerate(location):
        annotation = _annotation(cls, location[:index])
        is_tag = (
            len(_models(annotation)) > 1 and isinstance(part, str) and _member(annotation, part)
        )
        if not is_tag:
            parts.append(str(part))
    return ".".join(parts)


def _resolve(cls: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """The model class that owns the keys at ``location``, or None where it cannot be told."""
    models = _models(_annotation(cls, location))
    return models[0] if len(models) == 1 else None


def _annotation(cls: type[BaseModel], location: Sequence[int | str]) -> Any:
    current: Any = cls
    for part in location:
        member = _member(current, part) if isinstance(part, str) else None
        models = _models(current)
        if member is not None and len(models) > 1:
            current = member
        elif len(models) == 1 and part in models[0].model_fields:
            current = models[0].model_fields[str(part)].annotation
        elif isinstance(part, int) or not models:
            # Of tuple[Model, ...] and of Optional, what stands in them.
            empty = (type(None), ...)
            arguments = [a for a in get_args(_strip(current)) if a not in empty]
            current = arguments[-1] if arguments else None
    return current


def _takes_numbers(field: FieldInfo) -> bool:
    """Whether numbers are among the alternatives of a field, and true and false are not."""
    annotation = field.annotation
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    kinds = {_strip(choice) for choice in choices}
    return bool(kinds & {int, float}) and bool not in kinds


def _strip(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The model classes among the alternatives of an annotation."""
    annotation = _strip(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _member(annotation: Any, tag: str) -> type[BaseModel] | None:
    """The alternative of a discriminated union whose ``type`` field allows ``tag``."""
    for model in _models(annotation):
        field = model.model_fields.get("type")
        if field and get_origin(field.annotation) is Literal and tag in get_args(field.annotation):
            return model
    return None
