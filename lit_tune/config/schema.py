"""The JSON schema of a config, made from the same signatures as the parser."""

from typing import Any

from lit_tune.config.parameters import Parameter, parameters_of, summary_of
from lit_tune.config.ranges import ADAPTER_RANGES, RANGES, UNFREEZE_RANGES
from lit_tune.config.sections import DEFAULT_TASK, SECTIONS, TASK_TITLE, TOP_LEVEL, Section, tasks
from lit_tune.config.types import classes, json_schema
from lit_tune.models.adapter_settings import KEY as ADAPTER
from lit_tune.models.adapter_settings import TYPES, AdapterSettings
from lit_tune.models.unfreeze_settings import GRADUAL, GradualSettings, StageSettings
from lit_tune.models.unfreeze_settings import KEY as UNFREEZE
from lit_tune.tasks.base import Task


def config_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12). Our sections are exact, so that an editor marks a typo; ``trainer`` is open."""
    properties: dict[str, Any] = {p.name: _property(p.name, p) for p in TOP_LEVEL}
    properties["task"] = _task()
    for section in SECTIONS:
        properties[section.name] = _section(section)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lit-tune config",
        "type": "object",
        "properties": properties,
        # not "required": overlays and defaults on the command line are configs too
        "additionalProperties": False,
    }


def _section(section: Section) -> dict[str, Any]:
    properties = {p.name: _property(f"{section.name}.{p.name}", p) for p in section.parameters()}
    return {
        "type": "object",
        "description": section.title,
        "properties": properties,
        "additionalProperties": section.name == "trainer",
    }


def _task() -> dict[str, Any]:
    ours = tasks()
    return {
        "type": "object",
        "description": TASK_TITLE,
        "properties": {
            "class_path": {
                "description": "A task of lit-tune by name, or the class path of your own.",
                "default": DEFAULT_TASK,
                "anyOf": [{"enum": [*ours]}, {"type": "string", "pattern": r"\."}],
            },
            "init_args": {"type": "object"},
        },
        "additionalProperties": False,
        "allOf": [_init_args(name, task) for name, task in ours.items()],
    }


def _init_args(name: str, task: type[Task]) -> dict[str, Any]:
    parameters = parameters_of(task)
    init_args = {
        "type": "object",
        "description": summary_of(task),
        "properties": {p.name: _property(f"task.init_args.{p.name}", p) for p in parameters},
        "required": [p.name for p in parameters if p.required],
        "additionalProperties": False,
    }
    chosen: dict[str, Any] = {"properties": {"class_path": {"enum": [name, f"{task.__module__}.{name}"]}}}
    if name != DEFAULT_TASK:
        chosen["required"] = ["class_path"]
    return {"if": chosen, "then": {"properties": {"init_args": init_args}}}


def _property(key: str, parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": parameter.help} if parameter.help else {}
    schema |= (
        {ADAPTER: _adapter, UNFREEZE: _unfreeze}[key]() if key in (ADAPTER, UNFREEZE) else json_schema(parameter.hint)
    )
    if not parameter.required and not classes(parameter.hint):
        schema["default"] = parameter.default
    if key in RANGES:
        bounds = RANGES[key].json_schema()
        # a bound holds for numbers only, so null and texts pass it
        schema |= {"anyOf": [*bounds["anyOf"], {"type": "null"}]} if "anyOf" in bounds else bounds
    return schema


def _adapter() -> dict[str, Any]:
    """A type's name, or a mapping with the keys of :class:`AdapterSettings`."""
    properties = {p.name: _property(f"{ADAPTER}.{p.name}", p) for p in parameters_of(AdapterSettings)}
    for name, bounds in ADAPTER_RANGES.items():
        properties[name] |= bounds.json_schema()
    settings = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"anyOf": [{"enum": [*TYPES]}, settings, {"type": "null"}]}


def _unfreeze() -> dict[str, Any]:
    """``gradual``, a mapping (:class:`GradualSettings`), or a list of mappings (:class:`StageSettings`)."""

    def mapping(settings: type) -> dict[str, Any]:
        properties = {p.name: _property(f"{UNFREEZE}.{p.name}", p) for p in parameters_of(settings)}
        for name, bounds in UNFREEZE_RANGES.items():
            if name in properties:
                properties[name] |= bounds.json_schema()
        return {"type": "object", "properties": properties, "additionalProperties": False}

    stages = {"type": "array", "items": mapping(StageSettings)}
    return {"anyOf": [{"enum": [GRADUAL]}, mapping(GradualSettings), stages, {"type": "null"}]}
