"""What is wrong with a setting, said for people: the key, what was given, what is allowed, the nearest name, a fix."""

import re
from difflib import SequenceMatcher
from typing import Any

from lit_tune.config.parameters import Parameter
from lit_tune.config.ranges import RANGES
from lit_tune.config.sections import LINKS, all_keys, parameter_at, section_names, tasks
from lit_tune.config.sources import COMMAND_LINE, Setting
from lit_tune.config.training_arguments import OTHER_NAMES, TRAINING_ARGUMENTS
from lit_tune.config.types import choices, classes, words
from lit_tune.errors import ConfigError, nearest
from lit_tune.imports import import_class, is_allowed, remedy

MAX_SHOWN_KEYS = 12
ELSEWHERE_RATIO = 0.8
MAX_VALUE_CHARACTERS = 60
MAX_DETAIL_CHARACTERS = 220


def unknown_key(setting: Setting, keys: dict[str, Parameter]) -> ConfigError | None:
    """The problem with a key that no section has, or None.

    Args:
        setting: The setting.
        keys: From :func:`~lit_tune.config.sections.all_keys`, with the task in use.
    """
    key, where = setting.key, _where(setting)
    if key in section_names():
        first = next(k for k in keys if k.startswith(key + "."))
        return ConfigError(
            f"a section with keys of its own, got {_shown(setting.value)}{where}",
            where=key,
            fix=f"write its keys, e.g. {first}, or leave {key} out for the defaults",
        )
    if parameter_at(key, keys) is not None:
        return None
    for source, target in LINKS:
        if key == target or key.startswith(target + "."):
            return ConfigError(f"follows {source} and is not set by itself{where}", where=key, fix=f"set {source}")
    last = key.rsplit(".", 1)[-1]
    new = TRAINING_ARGUMENTS.get(last) or OTHER_NAMES.get(last)
    if new is not None:
        known_as = "a TrainingArguments name" if last in TRAINING_ARGUMENTS else "no such key"
        note = f" ({new.note})" if new.note else ""
        return ConfigError(
            f"{known_as}; here it is {new.fix}{note}{where}", where=key, fix=f"write {_as_written(new.fix, setting)}"
        )
    guess = nearest_key(key, keys)
    siblings = [k.removeprefix(setting.section + ".") for k in keys if k.startswith(setting.section + ".") and k != key]
    allowed = ""
    if siblings and "." in key and len(siblings) <= MAX_SHOWN_KEYS:
        allowed = f"; {setting.section} has: {', '.join(siblings)}"
    elif "." not in key:
        allowed = f"; at the top of a config: {', '.join([k for k in keys if '.' not in k] + section_names())}"
    did_you_mean = f"; did you mean {guess}?" if guess else allowed
    return ConfigError(
        f"no such key{did_you_mean}{where}",
        where=key,
        fix=f"write {_as_written(guess, setting)}" if guess else f"remove it; `{_help(setting)}` lists the keys",
    )


def nearest_key(key: str, keys: dict[str, Parameter]) -> str | None:
    """The key most probably meant: the same name elsewhere, a similar name in the same section, a similar name."""
    last, section = key.rsplit(".", 1)[-1], key.split(".")[0]
    same = [k for k in keys if k.rsplit(".", 1)[-1] == last and not k.startswith("trainer.")]
    same = same or [k for k in keys if k.rsplit(".", 1)[-1] == last]
    if same:
        return same[0]
    if "." not in key:
        top = nearest(key, [k for k in keys if "." not in k] + section_names())
        if top:
            return top
    else:
        right_section = nearest(section, section_names()) or section
        inside = {k.rsplit(".", 1)[-1]: k for k in keys if k.startswith(right_section + ".")}
        guess = nearest(last, inside)
        if guess:
            return inside[guess]
    anywhere = {k.rsplit(".", 1)[-1]: k for k in reversed(keys)}
    guess = nearest(last, anywhere)
    # a name of another section has to be nearly the same: num_labels is not lr_schedule.num_cycles
    alike = guess is not None and SequenceMatcher(None, last.lower(), guess.lower()).ratio() >= ELSEWHERE_RATIO
    return anywhere[guess] if guess and alike else None


def no_value(setting: Setting, parameter: Parameter | None) -> ConfigError:
    """The problem with ``--key`` at the end of a command line, or before the next ``--key``."""
    example = "true" if parameter and parameter.hint in (bool, bool | None) else _example(setting.key, parameter)
    return ConfigError("a value is missing", where=f"--{setting.key}", fix=f"--{setting.key} {example}")


def wrong_value(setting: Setting, parameter: Parameter, message: str) -> ConfigError:
    """The problem with a value that jsonargparse refused.

    Args:
        setting: The setting.
        parameter: What it sets.
        message: jsonargparse's own message; used only where the value names a class.
    """
    where = _where(setting)
    if setting.key == "task.class_path":
        return _wrong_task(setting)
    if classes(parameter.hint):
        return _wrong_class(setting, parameter, message)
    expected = words(parameter.hint)
    if setting.key in RANGES:
        expected = re.sub(r"(a whole number|a number)", rf"\1 {RANGES[setting.key]}", expected, count=1)
    return ConfigError(
        f"expected {expected}, got {_shown(setting.value)}{where}",
        where=setting.key,
        fix=_fix_value(setting, parameter),
    )


def out_of_range(
    key: str, value: Any, setting: Setting | None, parameter: Parameter | None = None
) -> ConfigError | None:
    """The problem with a number outside of what its key takes, or None."""
    if value is None or isinstance(value, bool | str) or value in RANGES[key]:
        return None
    kind = "a whole number" if isinstance(value, int) else "a number"
    setting = setting or Setting(key, value, "a default")
    fix = _fix_value(setting, parameter or Parameter(key, Any, None, ""))
    given = value if isinstance(value, int) else f"{value:g}"
    return ConfigError(
        f"expected {kind} {RANGES[key]}, got {given}{_where(setting)}",
        where=key,
        fix=fix,
    )


def missing_keys(given: list[Setting], keys: dict[str, Parameter]) -> list[ConfigError]:
    """Keys without default that nothing sets."""
    present = {s.key for s in given}
    return [
        ConfigError(
            f"is needed: {p.help[:1].lower()}{p.help[1:].rstrip('.')}", where=key, fix=f"{key}: {_example(key, p)}"
        )
        for key, p in keys.items()
        if p.required and key not in present
    ]


def class_given(value: Any) -> str | None:
    """The class a value names: ``X``, or ``{class_path: X}``."""
    if isinstance(value, dict):
        value = value.get("class_path")
    return value.strip() if isinstance(value, str) else None


def _cut_name(name: str) -> str:
    return name if len(name) <= MAX_VALUE_CHARACTERS else name[:MAX_VALUE_CHARACTERS] + "..."


def whole_config(message: str) -> ConfigError:
    """What jsonargparse says of a config whose settings are all right one by one."""
    return ConfigError(_essence(message) or _cut(message), where="config", fix="see `lit-tune fit --help`")


def cannot_be_made(error: Exception) -> ConfigError:
    """What a class of the config says of its arguments, or of a package that it needs."""
    text = str(error)
    named = re.search(r"Problem with given class_path '([\w.]+)':\s*(.+?)(?=\n\s*- |\nGiven value|\Z)", text, re.DOTALL)
    if named is None:  # the first alternative of a union is the one that was meant
        first = re.search(r"\bErrors:\s*- (.+?)(?=\n\s*- |\Z)", text, re.DOTALL)
        return ConfigError(_cut(first[1] if first else text), where="trainer", fix="change the option it names")
    needed = re.search(r"pip install ([^`\n]+)", named[2]) or re.search(r"No module named '(\w+)", named[2])
    return ConfigError(
        f"{named[1].rpartition('.')[2]} cannot be made: {_cut(named[2])}",
        where="trainer",
        fix=f"pip install {needed[1].removeprefix('-U ')}" if needed else "other arguments, or another class",
    )


def _wrong_task(setting: Setting) -> ConfigError:
    name, known = str(class_given(setting.value) or setting.value), tasks()
    if "." in name and not is_allowed(name):
        return _not_allowed(setting, name)
    guess = nearest(name.rsplit(".", 1)[-1], known)
    hint = f"did you mean {guess}? " if guess else ""
    return ConfigError(
        f"there is no task {_cut_name(name)}; {hint}there are: {', '.join(known)}{_where(setting)}",
        where="task.class_path",
        fix=f"class_path: {guess or next(iter(known))}",
    )


def _wrong_class(setting: Setting, parameter: Parameter, message: str) -> ConfigError:
    """One line out of jsonargparse's report on every member of a union."""
    bases = classes(parameter.hint)
    specs = setting.value if isinstance(setting.value, list) else [setting.value]
    names = [n for n in (class_given(spec) for spec in specs) if n]
    for name in names:
        if "." in name and not is_allowed(name):
            return _not_allowed(setting, name)
    for denied in re.findall(r"Importing '([\w.]+)' is not allowed", message):
        if any(denied.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1] for name in names):
            return _not_allowed(setting, denied)
    known = {c.__name__: c for base in bases for c in _subclasses(base)}
    unknown = [n for n in names if n.rsplit(".", 1)[-1] not in known]
    kind = " or ".join(b.__name__ for b in bases)
    names_class = setting.key.count(".") == 1 or setting.key.endswith(".class_path")
    if unknown and names_class:
        guess = nearest(unknown[0].rsplit(".", 1)[-1], known)
        return ConfigError(
            f"{_cut_name(unknown[0])} is not a {kind}{f'; did you mean {guess}?' if guess else ''}{_where(setting)}",
            where=setting.key,
            fix=f"write {guess}" if guess else f"give the full path of a {kind}, as package.module.ClassName",
        )
    said = _essence(message)
    if not names or said is None:
        example = f"{bases[0].__name__} or its subclass".replace("Callback or its subclass", "EarlyStopping")
        return ConfigError(
            f"expected {words(parameter.hint)}, got {_shown(setting.value)}{_where(setting)}",
            where=setting.key,
            fix=f"{{class_path: {example}, init_args: {{...}}}}, or leave {setting.key} out",
        )
    shown = ", ".join(map(_cut_name, names)) if names and names_class else kind
    return ConfigError(f"{said}{_where(setting)}", where=setting.key, fix=f"give the arguments that {shown} documents")


def _not_allowed(setting: Setting, name: str) -> ConfigError:
    return ConfigError(
        f"{_cut_name(name)} is not on the list of imports that a config may name{_where(setting)}",
        where=setting.key,
        fix=_cut(remedy(name)),
    )


def _essence(message: str) -> str | None:
    """The innermost "which argument, what was expected" of a nested jsonargparse message, where it says so."""
    inner = re.findall(r'Parser key "([^"]+)":\s*\n?\s*(Expected[^\n]*|Does not validate[^\n]*)', message)
    option = re.search(r"(?:Option|option) '([^']+)' is not accepted|does not accept option '([^']+)'", message)
    required = re.search(r'Key "([^"]+)" is required', message)
    if option:
        text = f"there is no argument {option.group(1) or option.group(2)}"
    elif required:
        text = f"the argument {required.group(1)} is needed"
    elif len(inner) > 0 and "Expected" in inner[-1][1]:
        text = f"{inner[-1][0]}: {inner[-1][1][0].lower()}{inner[-1][1][1:]}".replace(". Got value:", ", got")
    else:
        return None
    return _cut(text)


def _cut(text: str) -> str:
    """On one line, without module paths, not longer than what one reads."""
    text = re.sub(r"<class '([\w.]+)'>", lambda m: m.group(1).rsplit(".", 1)[-1], " ".join(text.split()))
    return text[:MAX_DETAIL_CHARACTERS].rstrip(". ")


def _subclasses(base: type) -> list[type]:
    found: list[type] = [base]
    derived: type
    for derived in base.__subclasses__():
        found += _subclasses(derived)
    return found


def _where(setting: Setting) -> str:
    return f" ({setting.where})"


def _help(setting: Setting) -> str:
    return f"lit-tune fit --help {setting.section}" if setting.section in section_names() else "lit-tune fit --help"


def _as_written(key: str, setting: Setting) -> str:
    if setting.where != COMMAND_LINE or " and " in key or key.startswith("lit-tune "):
        return key
    return "--" + key.replace(": ", " ", 1)


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return _cut_name(text)


def _fix_value(setting: Setting, parameter: Parameter) -> str:
    given = str(setting.value).lower()
    allowed = [str(c) for c in choices(parameter.hint)]
    meant = _SPELLINGS.get(given) if _SPELLINGS.get(given) in allowed else nearest(given, allowed)
    example = meant or _example(setting.key, parameter)
    return f"--{setting.key} {example}" if setting.where == COMMAND_LINE else f"{setting.key}: {example}"


_SPELLINGS = {
    "fp16": "16-mixed",
    "float16": "16-mixed",
    "bfloat16": "bf16-mixed",
    "fp32": "32-true",
    "float32": "32-true",
}


_EXAMPLES = {
    "model.model_name_or_path": "bert-base-uncased",
    "eval_every_steps": "500",
    "run_dir": "runs/my_run",
    "data.train": "my.csv",
    "data.limit_train": "1000",
    "data.limit_val": "1000",
    "data.limit_test": "1000",
    "data.max_length": "128",
    "data.pad_to_multiple_of": "8",
    "early_stopping.patience": "3",
    "task.init_args.focal_gamma": "2.0",
    "trainer.limit_train_batches": "100",
}


def _example(key: str, parameter: Parameter | None = None) -> str:
    if key in _EXAMPLES:
        return _EXAMPLES[key]
    if parameter is None or parameter.required or parameter.default is None:
        return "<" + (words(parameter.hint) if parameter else "value") + ">"
    default = parameter.default
    return str(default).lower() if isinstance(default, bool) else str(default)


def task_class(settings: list[Setting]) -> type | None:
    """The task that the settings choose last, or None where there is no such class."""
    chosen = [class_given(s.value) for s in settings if s.key == "task.class_path"]
    name = (chosen[-1] if chosen else None) or "SequenceClassification"
    known = tasks()
    if "." not in name or name.startswith("lit_tune.tasks."):
        return known.get(name.rsplit(".", 1)[-1])
    try:
        return import_class(name, where="task.class_path")
    except ConfigError:
        return None  # said by wrong_value, with its place


def keys_for(settings: list[Setting]) -> dict[str, Parameter]:
    """All keys, with the init arguments of the task that the settings choose."""
    return all_keys(task_class(settings))  # type: ignore[arg-type]
