"""Checks of the metadata of model files and exported files: every field is checked before it is used."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from .redact import redacted

MAX_DEPTH = 32
MAX_CLASSES = 1_000_000
MAX_NUMBER = 1e15


def parsed(text: str | bytes, depth: int = MAX_DEPTH) -> Any:
    """Parse JSON. Raises ValueError if it is invalid, or nested deeper than `depth`."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError(f"its JSON is nested deeper than {depth} levels") from None
    level = [document]
    while level := [
        inner
        for value in level
        for inner in (value.values() if isinstance(value, dict) else value)
        if isinstance(inner, dict | list)
    ]:
        depth -= 1
        if depth == 0:
            raise ValueError("its JSON is nested too deeply")
    return document


def checked_classes(classes: Any) -> tuple[str, ...]:
    """The class names. Raises ValueError if they are not a list of names."""
    if not isinstance(classes, list) or not 0 < len(classes) <= MAX_CLASSES:
        raise ValueError(f"classes must be a list of 1 to {MAX_CLASSES:,} names, got {_short(classes)}")
    for name in classes:
        if not isinstance(name, str):
            raise ValueError(f"classes must be names, got {_short(name)}")
    return tuple(classes)


def checked_task(task: Any) -> str:
    """The name of the task. Raises ValueError if it is not a name."""
    if not isinstance(task, str):
        raise ValueError(f"task must be a name, got {_short(task)}")
    return task


def checked_metrics(metrics: Any) -> dict[str, Any]:
    """Numbers by name, or nested tables of numbers; and `weights`, a name. Raises ValueError for anything else."""
    if not isinstance(metrics, dict):
        raise ValueError(f"metrics must be a table of numbers, got {_short(metrics)}")
    for name, value in metrics.items():
        if isinstance(value, dict):
            checked_metrics(value)
        elif name == "weights" and _text(value):
            continue
        elif not _number(value, -MAX_NUMBER, MAX_NUMBER) and not (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"metric {name} must be a number, got {_short(value)}")
    return metrics


def checked_provenance(provenance: Any, classes: int) -> dict[str, Any]:
    """The provenance, without the secrets in old files. Raises ValueError for impossible values."""
    _check_fields("provenance", provenance, PROVENANCE)
    if "recipe" in provenance:
        _check_fields("recipe", provenance["recipe"], RECIPE)
    if "trained_on" in provenance:
        _check_fields("trained_on", provenance["trained_on"], TRAINED_ON, needed=TRAINED_ON)
    if "categories" in provenance:
        ids = provenance["categories"]
        if not isinstance(ids, list) or len(ids) != classes or not all(_whole(one, -(2**62), 2**62) for one in ids):
            raise ValueError(f"categories must be the ids of the {classes} classes, got {_short(ids)}")
    return redacted(provenance)


def _check_fields(table: str, values: Any, fields: Mapping[str, Any], needed: Collection[str] = ()) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{table} must be a table, got {_short(values)}")
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{table} lacks {missing[0]}")
    for name, fits in fields.items():
        if name in values and not fits(values[name]):
            raise ValueError(f"{table} has an impossible {name}: {_short(values[name])}")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


PROVENANCE = {
    "date": _text,
    "source": _text,
    "data_fingerprint": _text,
    "drawn_by": ("content", "position").__contains__,
    "architecture": lambda value: isinstance(value, dict),
}
RECIPE = {
    "name": _text,
    "epochs": lambda value: _whole(value, 0, 10**9),
    "seed": lambda value: _whole(value, 0, 2**63 - 1),
    "val_share": lambda value: _number(value, 0, 1),
}
TRAINED_ON = {"images": lambda value: _whole(value, 0, 10**10), "identities": _text}
"""The fields that verbs use, and their valid values. Other fields are only shown."""
