"""What the rows themselves tell: balance, empty texts, repetitions, leakage, what is cut off."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lit_tune.data.truncation import WINDOWS, TokenCounts
from lit_tune.errors import DataError, LitTuneError
from lit_tune.preflight.findings import Finding, warning
from lit_tune.tasks.base import Spec
from lit_tune.tasks.examination import Examination

MAX_EMPTY_FRACTION = 0.05
MAX_OVERLAP_FRACTION = 0.5
MAX_CUT_FRACTION = 0.05
"""Of all tokens."""
HUGE_CHARS = 100_000
"""About twenty pages; a row of that size is more often a file that was glued together than a text."""
RARE_ROWS = 10
DOMINANT_FRACTION = 0.9


@dataclass(frozen=True)
class Facts:
    """What is known about the rows of a run.

    Args:
        spec: The labels.
        examination: Texts, overlaps and label counts of each split.
        tokens: Split -> lengths in tokens, of all rows or of a sample.
        max_length: Tokens at which a text is cut; None where none is.
        accepted: What ``data.accept`` names.
    """

    spec: Spec
    examination: Examination
    tokens: Mapping[str, TokenCounts]
    max_length: int | None
    accepted: tuple[str, ...] = ()

    def judged(self, name: str, problem: LitTuneError) -> Finding:
        """An error that ``data.accept`` turns into a warning."""
        if name in self.accepted:
            return Finding("warning", problem)
        fix = f"{problem.fix}; if it is meant so, data.accept: [{name}]"
        return Finding("error", type(problem)(problem.what, where=problem.where, fix=fix))


def data_findings(facts: Facts) -> list[Finding]:
    """Everything about the rows."""
    rules = (nothing_to_learn, balance, class_after_class, empty_texts, repetitions, leakage, huge_rows, truncation)
    return [finding for rule in rules for finding in rule(facts)]


def nothing_to_learn(facts: Facts) -> Iterator[Finding]:
    """One answer for all rows."""
    spec, counts = facts.spec, facts.spec.label_counts
    fix = "data with several answers"
    if counts and spec.total and sum(c > 0 for c in counts) <= 1:
        if sum(counts) == 0:
            what = f"no {spec.unit} of train has any label: there is nothing to learn"
        else:
            what = f"every {spec.unit} of train has the label {spec.label_names[counts.index(max(counts))]!r}"
        yield facts.judged("single_class", DataError(what, where="data.train", fix=fix))
    elif spec.baseline.get("mse") == 0.0:
        what = "every row of train has the same target: there is nothing to learn"
        yield facts.judged("single_class", DataError(what, where="data.train", fix=fix))


def balance(facts: Facts) -> Iterator[Finding]:
    """Classes that are hardly there, or hardly anything else."""
    spec = facts.spec
    counts, total = spec.label_counts, spec.total
    if not counts or sum(c > 0 for c in counts) < 2:
        return
    absent = [name for name, count in zip(spec.label_names, counts, strict=True) if count == 0]
    rare = [f"{n!r} {c}" for n, c in zip(spec.label_names, counts, strict=True) if 0 < c < RARE_ROWS]
    if absent:
        yield warning(
            f"{len(absent)} of {len(counts)} labels have no {spec.unit} in train: {', '.join(absent[:5])}",
            where="data.train",
            fix="rows for them or fewer task.init_args.label_names",
        )
    if rare and total >= RARE_ROWS * len(counts):
        yield warning(
            f"{len(rare)} label(s) have fewer than {RARE_ROWS} {spec.unit}s in train: {', '.join(rare[:5])}",
            where="data.train",
            fix="more rows of them or fewer labels",
        )
    is_single = spec.problem_type == "single_label_classification"
    if is_single and max(counts) > DOMINANT_FRACTION * total:
        name = spec.label_names[counts.index(max(counts))]
        yield warning(
            f"{max(counts) / total:.1%} of the train rows are {name!r}: accuracy will look high whatever is learned",
            where="data.train",
            fix="checkpoint.monitor: val/f1_macro, task.init_args.class_weights: balanced",
        )
    for split, found in facts.examination.label_counts.items():
        missing = [n for n, c, t in zip(spec.label_names, found, counts, strict=True) if c == 0 and t > 0]
        if split != "train" and missing:
            yield warning(
                f"{len(missing)} of {len(counts)} labels never occur in {split}: {', '.join(missing[:5])}",
                where=f"data.{split}",
                fix="more rows there, else nothing is said about these labels",
            )


def class_after_class(facts: Facts) -> Iterator[Finding]:
    """A stream is shuffled within blocks only: sorted rows stay sorted."""
    if facts.examination.is_sorted:
        yield warning(
            "the first rows come class after class, and a stream is shuffled in blocks of 10,000 rows only",
            where="data.streaming",
            fix="shuffle the file once (shuf), or data.streaming: false",
        )


def empty_texts(facts: Facts) -> Iterator[Finding]:
    """Rows without a text train on nothing but special tokens."""
    for split, found in facts.examination.texts.items():
        if not found.num_empty:
            for column, count in found.empty_cells.items():
                yield warning(
                    f"{count:,} of {found.num_rows:,} cells of column {column!r} are empty in {split}",
                    where=f"data.{split}",
                    fix="fill them in, if they should hold text",
                )
            continue
        share = found.num_empty / found.num_rows
        what = (
            f"{found.num_empty:,} of {found.num_rows:,} texts are empty in {split} ({share:.1%}; {found.empty_places})"
        )
        fix = "fill in or drop these rows"
        if share > MAX_EMPTY_FRACTION:
            yield facts.judged("empty_texts", DataError(what, where=f"data.{split}", fix=fix))
        else:
            yield warning(what, where=f"data.{split}", fix=fix)


def repetitions(facts: Facts) -> Iterator[Finding]:
    """Texts that stand several times in one split."""
    for split, found in facts.examination.texts.items():
        if found.num_duplicates:
            share = found.num_duplicates / found.num_rows
            head = f"{found.num_duplicates:,} of {found.num_rows:,} {split} rows ({share:.1%}) repeat an earlier text"
            yield warning(
                "\n  ".join([head, *found.duplicate_samples]),
                where=f"data.{split}",
                fix="drop them, unless their weight is meant",
            )


def leakage(facts: Facts) -> Iterator[Finding]:
    """What was seen in training measures memory."""
    for split, found in facts.examination.overlaps.items():
        if not found.count:
            continue
        head = (
            f"{found.count:,} of {found.total:,} {split} rows ({found.fraction:.1%}) have a text that stands in train"
        )
        what = "\n  ".join([head, *found.samples])
        fix = f"drop them from train or from {split}"
        if found.fraction > MAX_OVERLAP_FRACTION:
            yield facts.judged("leakage", DataError(what, where=f"data.{split}", fix=fix))
        else:
            yield warning(what, where=f"data.{split}", fix=fix)


def huge_rows(facts: Facts) -> Iterator[Finding]:
    """A row that is a file."""
    for split, found in facts.examination.texts.items():
        if facts.max_length is not None and found.longest_chars > HUGE_CHARS:
            has_windows = split in facts.tokens and WINDOWS in facts.tokens[split].others
            how_many = f"{facts.max_length} tokens"
            read = f"read in windows of {how_many}" if has_windows else f"{how_many} are read"
            yield warning(
                f"the longest {split} row has {found.longest_chars:,} characters, {read}",
                where=found.longest_place,
                fix="look at it: an unclosed quote, or several texts in one?",
            )


def truncation(facts: Facts) -> Iterator[Finding]:
    """What the model never sees."""
    for split, found in facts.tokens.items():
        share = found.num_cut_tokens / max(1, found.num_tokens)
        if share > MAX_CUT_FRACTION:
            rows = f"{found.num_cut_rows / found.num_rows:.0%} of the rows are longer than {facts.max_length}"
            yield warning(
                f"{share:.1%} of the {split} tokens are cut off: {rows} (longest {found.longest:,})",
                where="data.max_length",
                fix="a larger data.max_length where the model allows it, or shorter texts",
            )
