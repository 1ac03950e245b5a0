"""Everything that can be known before training, found out at once: one problem does not hide another.

``lit-tune check`` looks at all rows, tokenizes a sample and tries a few steps. ``lit-tune fit`` does what costs little,
and tokenizes as it has to.
"""

import logging
from collections.abc import Collection
from pathlib import Path

from transformers import PreTrainedModel

from lit_tune.callbacks.monitor import resolve_monitor
from lit_tune.checkpointing.free_space import NUM_CHECKPOINTS
from lit_tune.data.split import Split
from lit_tune.datamodule import TokenizedDataModule
from lit_tune.errors import LitTuneError, collected, raise_problems
from lit_tune.foreign_errors import in_our_words
from lit_tune.models.vocabulary import NewTokens, num_rows
from lit_tune.models.weight_files import WeightFiles
from lit_tune.module import FineTuneModule
from lit_tune.preflight.adapter_rules import check_prompt, find_base
from lit_tune.preflight.advice_rules import advice
from lit_tune.preflight.data_rules import Facts, data_findings
from lit_tune.preflight.devices import device_findings, this_machine
from lit_tune.preflight.findings import errors
from lit_tune.preflight.model_rules import (
    check_shapes,
    rehearse,
    require_head,
    skeleton_of,
    tokenizer_findings,
)
from lit_tune.preflight.report import Report
from lit_tune.preflight.samples import Sample, sample, trial_batches
from lit_tune.preflight.situation import Situation
from lit_tune.preflight.step_rules import plan_of, step_findings, unfreezing_findings
from lit_tune.preflight.storage import probe, room
from lit_tune.preflight.trial import USUAL_BATCHES, TrialData, memory_findings, try_out
from lit_tune.preflight.versions import missing_packages, version_findings

log = logging.getLogger("lit_tune")
READ_FOR_MODEL = ("model.", "data.tokenizer", "data.max_length")
READ_FOR_DATA = (
    *("task", "data.train", "data.val", "data.test", "data.dataset", "data.name", "data.revision", "data.field"),
    *("data.delimiter", "data.encoding", "data.streaming", "data.limit_"),
)
"""Beginnings of keys without which there is nothing to look at."""


class Preflight:
    """What is examined, and what was found out.

    Args:
        situation: The config and the machine.
        module: Built, no weights loaded.
        datamodule: Built, nothing read.
        run_dir: Folder of the run.
    """

    def __init__(
        self, situation: Situation, module: FineTuneModule, datamodule: TokenizedDataModule, run_dir: Path
    ) -> None:
        self.situation, self.module, self.datamodule, self.run_dir = situation, module, datamodule, run_dir
        self.report = Report()
        self.weights: WeightFiles | None = None

    def before_fit(self) -> Report:
        """The first phase of fit: data is read, checked and tokenized. No random number is drawn."""
        self.surroundings()
        problems: list[LitTuneError] = []
        has_model = self.model(problems)
        data, preparation = self.datamodule, self.datamodule.preparation
        with collected(problems):
            if has_model:
                data.prepare("fit")
            elif not data.streaming:
                preparation.read(("train", "val"))
        self.report.findings += errors(problems)
        if not problems:
            self.report.rows = {name: len(rows) for name, rows in preparation.encoded.items()}
            self.report.tokens = preparation.counts
            self.together()
        return self.report

    def check(self, unread: Collection[str] = (), with_trial: bool = True) -> Report:
        """Look at everything; the module is not to be used for training afterwards.

        Args:
            unread: Keys whose value is not in the config: what depends on them is left out.
            with_trial: Take a few steps if nothing is wrong.
        """
        self.surroundings()
        problems: list[LitTuneError] = []
        has_model = not touches(unread, READ_FOR_MODEL) and self.model(problems)
        used: dict[str, Split] = {}
        if not touches(unread, READ_FOR_DATA):
            with collected(problems):
                used = self.rows(has_model)
        self.report.findings += errors(problems)
        if problems or not (has_model and used):
            return self.report
        drawn = {name: sample(self.datamodule, split) for name, split in used.items()}
        streamed = {"train"} if self.datamodule.streaming else set()
        self.report.rows = {name: len(split) for name, split in used.items() if name not in streamed}
        self.report.tokens, self.report.is_sample = {name: found.counts for name, found in drawn.items()}, True
        self.together(drawn["train"])
        if with_trial and not self.report.errors:
            self.trial(used["train"], drawn["train"])
        return self.report

    def surroundings(self) -> None:
        """Packages, devices, folders: independent of model and data."""
        s, found = self.situation, self.report.findings
        found += [*version_findings(), *missing_packages(s), *device_findings(s, this_machine()), *advice(s)]
        found += probe(self.run_dir, "run_dir", "a folder you can write to")
        cache = self.datamodule.preparation.cache_dir
        found += probe(cache, "data.cache_dir", "a folder you can write to, or set LIT_TUNE_CACHE")

    def model(self, problems: list[LitTuneError]) -> bool:
        """Config, tokenizer and the files with the weights; whether all could be read."""
        module, reader, before = self.module, self.datamodule.reader, len(problems)
        with collected(problems):
            if not reader.learns:
                self.report.findings += tokenizer_findings(module.task, reader.tokenizer)
            self.report.max_length = reader.max_length
        if not module.from_scratch:
            with collected(problems):
                self.weights = find_base(module.recipe)
                check_prompt(module.recipe, reader.config, reader.max_length)
        return len(problems) == before

    def rows(self, has_model: bool) -> dict[str, Split]:
        """The rows of all splits, looked at; of a stream the first ones.

        Raises:
            LitTuneError: All problems together.
        """
        if not self.datamodule.streaming:
            used = self.datamodule.preparation.read(("train", "val", "test"))
            return {name: used[name] for name in ("train", "val", "test") if name in used}
        if not has_model:
            return {}
        _, block, kept = self.datamodule.preparation.look_at_stream()
        return {"train": block} | {name: split for name, split in kept.items() if name != "probe"}

    def num_units(self, drawn: Sample | None) -> int:
        """What an epoch of training counts: of rows that are not tokenized, as many as a sample makes it likely."""
        data = self.datamodule
        if drawn is None:
            return len(data.units("train", training=True))
        share = len(drawn.units(data.task, data.reader)) / max(1, drawn.counts.num_rows)
        return max(1, round(self.report.rows["train"] * share))

    def together(self, drawn: Sample | None = None) -> None:
        """What needs rows and model: labels, lengths, metrics, steps, shapes, room on the disk.

        Args:
            drawn: A part of train, where the whole is not tokenized.
        """
        s, module, data, report = self.situation, self.module, self.datamodule, self.report
        spec, examination = data.spec, data.preparation.examination
        assert spec is not None
        module.spec = report.spec = spec
        limit = module.task.cut_at(data.max_length)
        facts = Facts(spec, examination, report.tokens, limit, tuple(data.accept))
        report.plan = plan_of(s, None if data.streaming else self.num_units(drawn))
        report.findings += data_findings(facts) + step_findings(s, report.plan)
        problems: list[LitTuneError] = []
        for key in ("checkpoint.monitor", "early_stopping.monitor"):
            if s[key] is not None:
                with collected(problems):
                    resolve_monitor(self, s[key], key)  # type: ignore[arg-type]  # it asks for the datamodule alone
        with collected(problems):
            skeleton = skeleton_of(module, spec)
            if skeleton is not None:
                self.skeleton(skeleton, problems)
        report.findings += errors(problems)

    def skeleton(self, skeleton: PreTrainedModel, problems: list[LitTuneError]) -> None:
        """The model without numbers: shapes, groups, schedule, and how large checkpoints will be."""
        report, plan = self.report, self.report.plan
        report.architecture = type(skeleton).__name__
        if self.weights is not None:
            with collected(problems):
                check_shapes(self.module, skeleton, self.weights)
        assert plan is not None
        reader = self.datamodule.reader
        grown = self.module.recipe.folder() is not None  # trained with added tokens: its config says how many
        tokens = NewTokens(num_rows(reader.config) or 0) if grown else reader.new_tokens
        report.size = size = rehearse(self.module, skeleton, plan, problems, tokens)
        report.findings += unfreezing_findings(size.stages, plan)
        kept = [self.situation[f"checkpoint.keep_{which}"] for which in ("best", "last")]
        needed = NUM_CHECKPOINTS * size.checkpoint_bytes if any(kept) else 0
        wanted = sum(max(1, n) for n in kept if n) * size.checkpoint_bytes + size.checkpoint_bytes + size.export_bytes
        report.findings += room(self.run_dir / "checkpoints", needed, wanted)

    def trial(self, train: Split, drawn: Sample) -> None:
        """A few steps."""
        data, s = self.datamodule, self.situation
        assert data.spec is not None
        batches = trial_batches(data, train, drawn, USUAL_BATCHES)
        given = TrialData(batches, data.spec, data.reader, data.default_seed)
        names = ("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm")
        try:
            self.report.trial = try_out(self.module, given, {n: s[f"trainer.{n}"] for n in names})
        except Exception as error:
            known = error if isinstance(error, LitTuneError) else in_our_words(error)
            if known is None:
                raise
            self.report.findings += errors(getattr(known, "problems", [known]))
        else:
            self.report.findings += memory_findings(self.report.trial)


def touches(unread: Collection[str], keys: Collection[str]) -> bool:
    """Whether one of the keys is among those that are needed.

    >>> touches({"optimizer.lr"}, READ_FOR_DATA), touches({"data.val_split", "x"}, READ_FOR_DATA)
    (False, True)
    """
    return any(key.startswith(tuple(keys)) for key in unread)


def check_before_fit(
    situation: Situation, module: FineTuneModule, datamodule: TokenizedDataModule, run_dir: Path
) -> Report:
    """The first phase of fit: everything that costs little; data is read, checked and tokenized, warnings are logged.

    Args:
        situation: ``cli.situation``.
        module: Built, no weights loaded; its random numbers are not drawn from.
        datamodule: Built; prepared afterwards.
        run_dir: Folder of the run.

    Raises:
        LitTuneError: All errors together.
    """
    report = Preflight(situation, module, datamodule, run_dir).before_fit()
    for finding in report.warnings:
        log.warning("%s", finding.problem)
    raise_problems([finding.problem for finding in report.errors])
    return report


def check_before_evaluation(module: FineTuneModule, datamodule: TokenizedDataModule) -> None:
    """A model that no run here has trained: are its files whole, and has it a head?

    Raises:
        LitTuneError: No.
    """
    tokenizer_findings(module.task, datamodule.reader.tokenizer)
    if module.from_scratch:
        return
    weights = find_base(module.recipe)
    if module.recipe.folder() is not None:
        return  # what an adapter lacks is told when it is put on its base model
    skeleton = skeleton_of(module, datamodule.spec or module.task.spec_of_model(datamodule.reader.config))
    if skeleton is not None:
        require_head(module.model_name, skeleton, weights)
