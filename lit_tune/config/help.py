"""``lit-tune fit --help``: every key with its meaning, type and default, from the signatures and their docstrings."""

import re
import textwrap
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from lit_tune.config.flags import option_of
from lit_tune.config.parameters import Parameter, parameters_of, summary_of
from lit_tune.config.sections import DEFAULT_TASK, SECTIONS, TASK_TITLE, TOP_LEVEL, section_names, tasks
from lit_tune.config.types import choices, short
from lit_tune.errors import ConfigError, nearest

NAME_WIDTH = 26
MIN_WIDTH, MAX_WIDTH = 60, 120
MAX_NOTE = 32
KEYS_OF_A_CONFIG = "Keys of a config: `lr: 3e-5` under `optimizer:` in a file is `--optimizer.lr 3e-5` here."
NO_BREAK = "\N{NO-BREAK SPACE}"

_ALSO_NEEDED = {"predict": " --data.predict new.csv", "export": " --output my_model", "push": " --repo my-model"}

COMMON_FLAGS: list[tuple[str, str]] = [
    ("--config FILE, -c FILE", "A config in YAML; several overlay each other, keys on the command line come on top."),
    ("--print_config", "Print the resolved config and stop."),
    ("--allow-import PACKAGE", "Let the config name classes of this package; may be given several times."),
    ("--allow-remote-code", "Run the code of the model's repository, at the commit in model.revision."),
    ("--debug", "Show a traceback with every error."),
    ("--help [SECTION]", f"This text, or all about one section: {', '.join(section_names())}."),
]


def verb_help(
    verb: str, function: Callable[..., Any], topic: str | None, width: int, hidden: Collection[str] = ()
) -> str:
    """The help of a verb.

    Args:
        verb: Its name.
        function: Its function.
        topic: A section, or None for everything.
        width: Columns of the terminal.
        hidden: Dotted keys to leave out: those that a config may not set.

    Raises:
        ConfigError: No such section.
    """
    width = max(MIN_WIDTH, min(width, MAX_WIDTH))
    if topic is not None:
        return _section_help(topic, width, hidden) + "\n"
    flags = [p for p in parameters_of(function) if p.name != "options"]
    takes_config = any(p.name == "options" for p in parameters_of(function))
    title = summary_of(function)
    blocks = [textwrap.fill(f"lit-tune {verb}: {title[0].lower()}{title[1:]}", width)]
    if takes_config:
        blocks.append(_usage(verb))
    rows = [(_flag(p), _with_default(p.help, p)) for p in flags]
    common = COMMON_FLAGS if takes_config else [f for f in COMMON_FLAGS if f[0] in ("--debug",)]
    blocks.append("Options\n" + _table([*rows, *common], width))
    if takes_config:
        blocks.append(textwrap.fill(KEYS_OF_A_CONFIG, width))
        blocks.append(_table([_row(p) for p in TOP_LEVEL], width))
        blocks += [_section_help(name, width, hidden, brief=True) for name in section_names()]
    return "\n\n".join(blocks) + "\n"


def _usage(verb: str) -> str:
    lines = [f"  lit-tune {verb} --config my.yaml [--section.key value ...]"]
    if verb == "fit":
        lines.append("  lit-tune fit --data.train my.csv --model.model_name_or_path bert-base-uncased")
    elif verb != "prepare":
        lines.append(f"  lit-tune {verb} --config runs/my_run/config.yaml{_ALSO_NEEDED.get(verb, '')}")
    return "\n".join(lines).replace(NO_BREAK, " ")


def _section_help(name: str, width: int, hidden: Collection[str], brief: bool = False) -> str:
    if name == "task":
        return _task_help(width)
    section = next((s for s in SECTIONS if s.name == name), None)
    if section is None:
        guess = nearest(name, section_names())
        raise ConfigError(
            f"there is no section {name}; there are: {', '.join(section_names())}",
            where="--help",
            fix=f"--help {guess or section_names()[0]}",
        )
    parameters = [p for p in section.parameters() if f"{name}.{p.name}" not in hidden]
    heading = textwrap.fill(f"{name}: {section.title}", width)
    if name == "trainer" and brief:
        mine = [p for p in parameters if p.name in _TRAINER_HELP]
        others = ", ".join(p.name for p in parameters if p not in mine)
        tail = textwrap.fill(f"and, see `--help trainer`: {others}", width, initial_indent="  ", subsequent_indent="  ")
        return f"{heading}\n{_table([_row(_shortened(p)) for p in mine], width)}\n{tail}"
    if name == "trainer":
        parameters = [_shortened(p) for p in parameters]
    return f"{heading}\n{_table([_row(p) for p in parameters], width)}"


_TRAINER_HELP = {  # where Lightning's own docstring is long or says less than what holds here
    "accelerator": "cpu, gpu, cuda, mps or auto.",
    "devices": "How many devices, a list of their numbers, or auto: all of them.",
    "strategy": "auto, ddp, ddp_spawn ...; auto is ddp where there are several devices.",
    "precision": "32-true, bf16-mixed, 16-mixed (GPU only), bf16-true, 64-true ...; default: 32-true.",
    "max_epochs": "Epochs to train; -1 for no limit, which is the default once max_steps is given.",
    "max_steps": "Optimizer steps to train; -1 for no limit.",
    "accumulate_grad_batches": "Micro-batches per optimizer step; loss and gradient do not depend on it.",
    "gradient_clip_val": "Norm to which a longer gradient is shortened; 0 or null is off.",
    "log_every_n_steps": "Optimizer steps between two logged lines.",
    "callbacks": "Further callbacks: [{class_path: ..., init_args: {...}}].",
}


def _task_help(width: int) -> str:
    ours = tasks()
    blocks = [textwrap.fill(f"task: {TASK_TITLE}", width)]
    rows = [("class_path", f"One of {', '.join(ours)}, or a class path of your own. [str = {DEFAULT_TASK}]")]
    blocks[0] += "\n" + _table(rows, width)
    for name, task in ours.items():
        title = textwrap.fill(
            f"init_args of {name}: {summary_of(task)}", width, initial_indent="  ", subsequent_indent="    "
        )
        blocks.append(f"{title}\n{_table([_row(p) for p in parameters_of(task)], width)}")
    return "\n".join(blocks)


def _row(parameter: Parameter) -> tuple[str, str]:
    return parameter.name, _with_type(parameter)


def _with_type(p: Parameter) -> str:
    kind = short(p.hint)
    if p.required:
        note = f"{kind}, required"
    elif p.default is None:
        note = kind  # the text says what happens without it
    else:
        default = str(p.default).lower() if isinstance(p.default, bool) else str(p.default).replace("'", "")
        note = f"{kind} = {default or repr('')}"
    # not broken over lines, unless it is itself long
    kept = note.replace(" ", NO_BREAK) if len(note) <= MAX_NOTE else note.replace("|", " | ")
    return f"{p.help} [{kept}]"


def _with_default(text: str, p: Parameter) -> str:
    return text if p.default in (None, False) or p.required else f"{text} [{p.default}]"


def _flag(p: Parameter) -> str:
    if p.hint is bool:
        return option_of(p)
    kind = "FILE" if p.hint in (Path, Path | None) else "VALUE"
    return f"{option_of(p)} {'|'.join(choices(p.hint)) or kind}"


def _shortened(p: Parameter) -> Parameter:
    """Lightning's own docstrings, cut to what fits a list: one sentence, no markup, no default."""
    if p.name in _TRAINER_HELP:
        return Parameter(p.name, p.hint, p.default, _TRAINER_HELP[p.name])
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", p.help)
    text = re.sub(r"\s*(Disabled by default \(.*?\)|Default: .*?)\.(?=\s|$)", "", text).strip()
    first = re.split(r"(?<=[a-z\d)\"])\. (?=[A-Z])", text)[0].rstrip(".")
    return Parameter(p.name, p.hint, p.default, first + "." if first else "")


def _table(rows: list[tuple[str, str]], width: int) -> str:
    lines = []
    for name, text in rows:
        left = f"  {name}"
        wrapped = textwrap.wrap(text, width - NAME_WIDTH, break_on_hyphens=False, break_long_words=False) or [""]
        if len(left) + 2 > NAME_WIDTH:
            lines.append(left)
        else:
            lines.append(f"{left:<{NAME_WIDTH}}{wrapped.pop(0)}")
        lines += [" " * NAME_WIDTH + line for line in wrapped]
    return "\n".join(lines).replace(NO_BREAK, " ")
