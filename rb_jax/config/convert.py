"""Between ConfigDicts, stored JSON and the frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections

from rb_jax.config.group import ConfigError
from rb_jax.config.schema import Config
from rb_jax.errors import refuse_url

BUCKETS = ("train.init_from", "train.autoencoder_from")  # may be in one


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """The editable form that configs/*.py return and absl flags override."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """Checked, frozen form of a ConfigDict or nested dict; raises ConfigError naming the key."""
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return from_values(Config, values)


def from_stored(values: Mapping[str, Any]) -> Config:
    """As ``from_config_dict``, of a configuration saved with weights.

    Keys that did not exist when it was saved take their defaults, which mean "as before".
    """
    return from_config_dict(_filled(dataclasses.asdict(Config()), values))


def _filled(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(defaults) | dict(values)
    for name, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(filled[name], Mapping):
            filled[name] = _filled(default, filled[name])
    return filled


def check_key(key: str) -> None:
    """Raises ConfigError if a dotted key such as ``train.steps`` names no value."""
    cls, prefix = Config, ""
    for name in key.split("."):
        hints = _hints(cls) if dataclasses.is_dataclass(cls) else {}
        _check_name(name, hints, prefix)
        cls, prefix = hints[name], f"{prefix}{name}."


def _hints(cls: Any) -> dict[str, Any]:
    """The type of each value of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _check_name(name: str, known: Mapping[str, Any], prefix: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {prefix}{close[0]}?" if close else ""
        raise ConfigError(f"config.{prefix}{name}: no such key{hint}")


def from_values(cls, values: Any, prefix: str = ""):
    """A dataclass of the configuration from nested dicts.

    Raises ConfigError naming the key, InputError for a path that is a URL.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{prefix[:-1]}: expected a group of values, got {values!r}")
    hints = _hints(cls)
    for key in values:
        _check_name(str(key), hints, prefix)
    missing = [name for name in hints if name not in values]
    if missing:
        raise ConfigError(f"config.{prefix}{missing[0]}: missing")
    return cls(**{name: _value(hints[name], values[name], prefix + name) for name in hints})


def _value(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_values(hint, value, key + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"config.{key}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"config.{key}: expected a tuple, got {value!r}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(f"config.{key}: expected {len(inner)} values, got {len(value)}")
        pairs = enumerate(zip(inner, value, strict=True))
        return tuple(_value(h, v, f"{key}[{i}]") for i, (h, v) in pairs)
    if isinstance(hint, types.UnionType):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"config.{key}: expected {hint.__name__}, got {value!r}")
    refuse_url(f"config.{key}", value, buckets=key in BUCKETS)
    return value


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested dicts, e.g. a checkpoint's and yours."""
    keys = []
    for name in sorted(set(a) | set(b)):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differing_keys(left, right, f"{prefix}{name}.")
        elif _plain(left) != _plain(right):
            keys.append(f"{prefix}{name}")
    return keys


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
