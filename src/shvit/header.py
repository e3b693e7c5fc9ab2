"""Check the metadata of model files and exported files before it is used."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from .confidence import UNCALIBRATED, Calibration
from .redact import redacted

MAX_NESTING = 32
MAX_CLASSES = 1_000_000
MAX_METRIC = 1e15


def parsed(text: str | bytes, depth: int = MAX_NESTING) -> Any:
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


def checked_facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """The classes, task, metrics, provenance and calibration of a header.

    Secrets are removed, since old versions stored them.

    Raises:
        KeyError: One of these fields, except calibration, is missing.
        ValueError: One of these fields is invalid.
    """
    facts = {key: header[key] for key in ("classes", "task", "metrics", "provenance")}
    classes, provenance = facts["classes"], facts["provenance"]
    if not isinstance(classes, list) or not 0 < len(classes) <= MAX_CLASSES:
        raise ValueError(f"classes must be a list of 1 to {MAX_CLASSES:,} names, got {classes!r:.60}")
    if others := [name for name in classes if not _text(name)]:
        raise ValueError(f"class names must be strings, got {others[0]!r:.60}")
    if not _text(facts["task"]):
        raise ValueError(f"task must be a string, got {facts['task']!r:.60}")
    _check_metrics(facts["metrics"])
    _check_fields("provenance", provenance, PROVENANCE)
    if "recipe" in provenance:
        _check_fields("recipe", provenance["recipe"], RECIPE)
    if "trained_on" in provenance:
        _check_fields("trained_on", provenance["trained_on"], TRAINED_ON, needed=TRAINED_ON)
    ids = provenance.get("categories", [0] * len(classes))
    if not isinstance(ids, list) or len(ids) != len(classes) or not all(_whole(one, -(2**62), 2**62) for one in ids):
        raise ValueError(f"categories must be a list with one id per class, got {ids!r:.60}")
    calibration = Calibration.from_dict(header["calibration"]) if "calibration" in header else UNCALIBRATED
    return {**facts, "classes": tuple(classes), "provenance": redacted(provenance), "calibration": calibration}


def _check_metrics(metrics: Any) -> None:
    """Check that metrics are numbers or nested dicts of numbers. Only the entry `weights` may be a string."""
    if not isinstance(metrics, dict):
        raise ValueError(f"metrics must be a dict of numbers, got {metrics!r:.60}")
    for name, value in metrics.items():
        if isinstance(value, dict):
            _check_metrics(value)
        elif value != value or (name == "weights" and _text(value)):  # NaN is allowed
            continue
        elif not _number(value, -MAX_METRIC, MAX_METRIC):
            raise ValueError(f"metric {name} must be a number, got {value!r:.60}")


def _check_fields(table: str, values: Any, fields: Mapping[str, Any], needed: Collection[str] = ()) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{table} must be a dict, got {values!r:.60}")
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{table} lacks {missing[0]}")
    for name, fits in fields.items():
        if name in values and not fits(values[name]):
            raise ValueError(f"{table} has an invalid {name}: {values[name]!r:.60}")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


PROVENANCE = {
    "date": _text,
    "source": _text,
    "data_fingerprint": _text,
    "drawn_by": ("hash", "content", "position").__contains__,
    "architecture": lambda value: isinstance(value, dict),
}
RECIPE = {
    "name": _text,
    "epochs": lambda value: _whole(value, 0, 10**9),
    "seed": lambda value: _whole(value, 0, 2**63 - 1),
    "val_share": lambda value: _number(value, 0, 1),
}
TRAINED_ON = {"images": lambda value: _whole(value, 0, 10**10), "identities": _text}
"""The fields that commands use, each with a check of its value. Other fields are only displayed."""
