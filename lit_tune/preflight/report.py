"""What preflight found out, for a person and for a program."""

import json
from dataclasses import dataclass, field
from typing import Any

from lit_tune.data.truncation import TokenCounts
from lit_tune.durable import megabytes
from lit_tune.preflight.findings import Finding
from lit_tune.preflight.model_rules import Size
from lit_tune.preflight.step_rules import Plan
from lit_tune.preflight.trial import Trial
from lit_tune.tasks.base import Spec

MAX_LABELS_SHOWN = 20


@dataclass
class Report:
    """All that was found out; what could not be is None or empty.

    Args:
        findings: Errors and warnings.
        spec: The labels.
        rows: Split -> rows that are used; a stream has none.
        tokens: Split -> lengths.
        is_sample: Lengths are those of some rows only.
        max_length: Tokens at which a text is cut.
        architecture: Class of the model.
        size: Of the model.
        plan: Batches and steps.
        trial: Memory and time.
    """

    findings: list[Finding] = field(default_factory=list)
    spec: Spec | None = None
    rows: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, TokenCounts] = field(default_factory=dict)
    is_sample: bool = False
    max_length: int | None = None
    architecture: str | None = None
    size: Size | None = None
    plan: Plan | None = None
    trial: Trial | None = None

    @property
    def errors(self) -> list[Finding]:
        """What must be mended first."""
        return [f for f in self.findings if f.is_error]

    @property
    def warnings(self) -> list[Finding]:
        """What is worth a look."""
        return [f for f in self.findings if not f.is_error]

    def to_text(self) -> str:
        """For a person: what is known, then the warnings; errors are told by the command line."""
        parts = ["\n".join([*self.data_lines(), *self.model_lines(), *self.run_lines()])]
        if self.warnings:
            count = len(self.warnings)
            parts.append(f"{count} warning{'s' if count > 1 else ''}")
            parts += [str(f.problem) for f in self.warnings]
        errors = len(self.errors)
        verdict = f"{errors} error{'s' if errors > 1 else ''}: see below" if errors else "no errors"
        return "\n\n".join([p for p in parts if p] + [verdict])

    def data_lines(self) -> list[str]:
        """Rows, labels, lengths."""
        lines = []
        if self.rows:
            lines.append("data     " + ", ".join(f"{name} {count:,} rows" for name, count in self.rows.items()))
        if self.spec is not None:
            lines.append(f"problem  {self.spec.problem_type}")
            counts = list(zip(self.spec.label_names, self.spec.label_counts, strict=False))
            width = max((len(name) for name, _ in counts[:MAX_LABELS_SHOWN]), default=0)
            for name, count in counts[:MAX_LABELS_SHOWN]:
                lines.append(f"  {name:<{width}}  {count:>9,}  {count / max(1, self.spec.total):6.1%}")
            if len(counts) > MAX_LABELS_SHOWN:
                lines.append(f"  ... {len(counts)} labels in all")
        for name, found in self.tokens.items():
            of = f" of {found.num_rows:,} rows" if self.is_sample else ""
            mean = found.num_tokens / max(1, found.num_rows)
            share = f", {found.num_cut_tokens / found.num_tokens:.1%} cut at {self.max_length}"
            cut = share if found.num_cut_tokens else ", none cut"
            lines.append(f"tokens   {name}: mean {mean:.1f}, longest {found.longest:,}{of}{cut}")
        return lines

    def model_lines(self) -> list[str]:
        """Size of the model and of its checkpoints."""
        if self.size is None:
            return []
        size = self.size
        return [
            f"model    {self.architecture}: {size.parameters:,} parameters, {size.trained:,} trained",
            f"disk     {megabytes(size.checkpoint_bytes)} per checkpoint, {megabytes(size.export_bytes)} for best/",
        ]

    def run_lines(self) -> list[str]:
        """Steps, memory, time."""
        lines = []
        if self.plan is not None and self.plan.steps is not None:
            per_epoch = f"{self.plan.steps_per_epoch:,} per epoch, " if self.plan.steps_per_epoch else ""
            lines.append(f"steps    {per_epoch}{self.plan.steps:,} in all")
        if self.trial is not None:
            trial = self.trial
            of = f" of {trial.memory_bytes / 1e9:.1f}" if trial.memory_bytes else ""
            what = "GPU memory" if trial.memory_bytes else "memory of the whole process"
            shape = f"{trial.rows} rows x {trial.tokens} tokens"
            lines.append(f"memory   {trial.peak_bytes / 1e9:.2f}{of} GB at most ({what}), {shape}")
            lines.append(f"time     {trial.seconds:.3g} s per batch on {trial.device}{self.epoch_time()}")
        return lines

    def epoch_time(self) -> str:
        """``, about 12 min per epoch without validation``, where that can be said."""
        if self.trial is None or self.plan is None or self.plan.batches is None:
            return ""
        seconds = self.trial.seconds * self.plan.batches
        shown = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        return f", about {shown if seconds < 7200 else f'{seconds / 3600:.1f} h'} per epoch without validation"

    def to_json(self) -> str:
        """For a program."""
        plain: dict[str, Any] = {
            "errors": [f.to_dict() for f in self.errors],
            "warnings": [f.to_dict() for f in self.warnings],
            "rows": self.rows,
            "spec": self.spec.to_dict() if self.spec else None,
            "tokens": {name: vars(found) for name, found in self.tokens.items()},
            "tokens_of_a_sample": self.is_sample,
            "max_length": self.max_length,
            "architecture": self.architecture,
            "size": vars(self.size) if self.size else None,
            "plan": vars(self.plan) if self.plan else None,
            "trial": vars(self.trial) if self.trial else None,
        }
        if self.trial and self.plan and self.plan.batches is not None:
            plain["seconds_per_epoch"] = self.trial.seconds * self.plan.batches
        return json.dumps(plain, indent=2, ensure_ascii=False)
