"""``lit-tune``: the table of verbs, and what every one of them shares: flags, messages, exit codes.

A verb is imported only when it is called; ``--help`` and ``--version`` import nothing heavy.
"""

import importlib
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any

from lit_tune import __version__, interrupts
from lit_tune.config.flags import option_of, take_flags
from lit_tune.config.parameters import Parameter, parameters_of
from lit_tune.errors import ConfigError, LitTuneError, nearest
from lit_tune.foreign_errors import in_our_words
from lit_tune.imports import allow_import, allow_remote_code
from lit_tune.interrupts import Interruption
from lit_tune.preflight.versions import refuse_malware
from lit_tune.ranks import join_ranks, tell_rank_zero, watch_rank_zero

VERBS: dict[str, str] = {
    "fit": "train a model, keep its best weights, and write them to run_dir/best",
    "validate": "measure the run's best weights on the validation split",
    "test": "measure the run's best weights on the test split and write test_metrics.json",
    "predict": "label the rows of data.predict with the run's best weights",
    "check": "look for all that would go wrong, without training: config, packages, devices, rows, model, disk",
    "prepare": "read, check and tokenize the data, cache it, and say what is in it; no weights are loaded",
    "export": "write the run's verified best weights to a folder: as they are, merged, in half precision, or as ONNX",
    "push": "upload the run's verified best weights to the Hugging Face Hub, as one commit of a private repository",
    "schema": "print the JSON schema of a config, for editors that complete and check YAML",
    "completion": "print a script that lets bash or zsh complete verbs, options and keys, at once",
}
"""Verb -> one line, the summary of its function; one file each in ``lit_tune/commands``."""

EXIT_BUG, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 130, 143

SHARED_FLAGS = [
    Parameter("allow_import", list[str], [], ""),
    Parameter("allow_remote_code", bool, False, ""),
    Parameter("debug", bool, False, ""),
    Parameter("help", bool, False, ""),
]

OVERVIEW = """\
lit-tune {version}: fine-tune Hugging Face models on Lightning from one YAML file

  lit-tune fit --data.train my.csv --model.model_name_or_path bert-base-uncased
  lit-tune fit --config my.yaml [--optimizer.lr 3e-5 ...]
  lit-tune test --config runs/my_run/config.yaml

Verbs
{verbs}

`lit-tune <verb> --help` lists its options and all keys of a config; `lit-tune --version` the version.
Exit codes: 0 done, 2 config, 3 data, 4 model, 5 hardware, 6 numerics, 7 storage, 8 out of memory, 1 a bug of ours.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: What follows ``lit-tune``; default: the command line.

    Returns:
        The exit code.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    if not tokens or tokens[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return 0
    if tokens[0] == "--version":
        print(f"lit-tune {__version__}")
        return 0
    interrupts.install()
    watch_rank_zero()
    try:
        return _exit_code(tokens)
    finally:
        join_ranks()
        interrupts.uninstall()


def _exit_code(tokens: list[str]) -> int:
    """Run a verb; every way in which it may end has a code and, where it is not 0, a message."""
    debug = "--debug" in tokens
    try:
        _run(tokens[0], tokens[1:])
    except LitTuneError as error:
        return _say(error, debug)
    except Interruption as error:
        if not tell_rank_zero(str(error)):
            print(f"lit-tune: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED if error.signum == signal.SIGINT else EXIT_TERMINATED
    except KeyboardInterrupt:  # outside the main thread, where no handler can be ours
        print("lit-tune: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as error:
        # Lightning answers a KeyboardInterrupt with sys.exit(1) after its own clean-up (trainer/call.py, 2.6.6)
        if isinstance(error.__context__, KeyboardInterrupt):
            return EXIT_INTERRUPTED
        raise
    except BrokenPipeError:  # `lit-tune fit --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        known = in_our_words(error)
        if known is not None:
            return _say(known.with_traceback(error.__traceback__), debug)
        traceback.print_exc()
        print(
            f"\nlit-tune {__version__}: this is a bug in lit-tune, please report it with the lines above",
            file=sys.stderr,
        )
        return EXIT_BUG
    return 0


def _run(verb: str, tokens: list[str]) -> None:
    function = _load(verb)
    own = parameters_of(function, skip=("options",))
    takes_config = "options" in {p.name for p in parameters_of(function)}
    tokens = ["--help" if t == "-h" else t for t in tokens]
    shared, tokens = take_flags(tokens, SHARED_FLAGS)
    for package in shared.get("allow_import", []):
        allow_import(package)
    if shared.get("allow_remote_code"):
        allow_remote_code()
    if shared.get("help"):
        from lit_tune.config.help import verb_help
        from lit_tune.preflight.trainer_rules import NOT_OFFERED

        topic = next((t for t in tokens if not t.startswith("-")), None)
        print(verb_help(verb, function, topic, shutil.get_terminal_size((100, 24)).columns, NOT_OFFERED), end="")
        return
    flags, options = take_flags(tokens, own)
    _refuse_flags_of_others(verb, options)
    if not takes_config:
        _refuse_extra(verb, options)
        function(**flags)
    elif "--print_config" in options:
        from lit_tune.cli import parse

        print(parse([o for o in options if o != "--print_config"], verb).to_yaml(), end="")
    else:
        function(options, **flags)


def _load(verb: str) -> Callable[..., Any]:
    if verb not in VERBS:
        guess = nearest(verb, VERBS)
        raise ConfigError(
            f"there is no verb {verb!r}; there are: {', '.join(VERBS)}",
            where="lit-tune",
            fix=f"lit-tune {guess} ..." if guess else "lit-tune --help",
        )
    # torch reads it when it is imported: operators that Apple's GPUs lack then run on the CPU instead of failing
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    refuse_malware()
    module = importlib.import_module(f"lit_tune.commands.{verb}")
    return getattr(module, verb)


def _refuse_flags_of_others(verb: str, options: list[str]) -> None:
    for other in sorted(VERBS.keys() - {verb}):
        for flag in parameters_of(_load(other), skip=("options",)):
            if option_of(flag) in options:
                raise ConfigError(
                    f"belongs to lit-tune {other}",
                    where=f"{option_of(flag)}",
                    fix=f"leave it out; lit-tune {verb} --help lists the options",
                )


def _refuse_extra(verb: str, options: list[str]) -> None:
    if options:
        raise ConfigError(
            f"unexpected argument {options[0]!r}",
            where=f"lit-tune {verb}",
            fix=f"lit-tune {verb} --help lists the options",
        )


def _say(error: LitTuneError, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if tell_rank_zero(str(error)):
        return error.exit_code
    problems = getattr(error, "problems", [error])
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    if len(problems) > 1:
        print(f"lit-tune: {len(problems)} problems\n", file=sys.stderr)
    blocks = []
    for problem in problems:
        lines = [
            textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            for line in str(problem).splitlines()
        ]
        blocks.append("\n".join(lines))
    print("\n\n".join(blocks), file=sys.stderr)
    return error.exit_code


def _overview() -> str:
    lines = []
    for verb, text in VERBS.items():
        lines.append(f"  {verb:<12}{text}")
    return OVERVIEW.format(version=__version__, verbs="\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
