"""``lit-tune check``."""

import logging
from pathlib import Path

from lit_tune.cli import LitTuneCLI, parse
from lit_tune.console import configure_logging
from lit_tune.errors import ConfigError, LitTuneError, collected, raise_problems
from lit_tune.preflight.examine import Preflight
from lit_tune.preflight.findings import errors
from lit_tune.preflight.report import Report

FORMATS = ("text", "json")


def check(options: list[str], format: str = "text") -> None:
    """Look for all that would go wrong, without training: config, packages, devices, rows, model, disk.

    Without errors a few steps are tried, to measure memory and time.

    Args:
        options: The config: files and single keys.
        format: What is printed: ``text``, or ``json`` for programs.
    """
    if format not in FORMATS:
        raise ConfigError(f"there is no {format!r}; there are: text, json", where="--format", fix="--format json")
    configure_logging()
    logging.getLogger("lit_tune").setLevel(logging.ERROR)  # what a run says of itself is none of a check's business
    report = examined(parse(options, "fit", lenient=True))
    print(report.to_json() if format == "json" else report.to_text())
    raise_problems([finding.problem for finding in report.errors])


def examined(cli: LitTuneCLI) -> Report:
    """All findings about a config, the problems of the config itself first."""
    problems: list[LitTuneError] = list(cli.problems)
    if not problems:
        with collected(problems):
            cli.build()  # trainer, callbacks, loggers
    report = Report()
    with collected(problems):
        module, datamodule = cli.parts({(problem.where or "").split(".")[0] for problem in problems})
        preflight = Preflight(cli.situation, module, datamodule, Path(cli.config.run_dir))
        report = preflight.check(cli.unread, with_trial=not problems)
    told = {str(problem) for problem in problems}
    report.findings = [*errors(problems), *(f for f in report.findings if str(f.problem) not in told)]
    return report
