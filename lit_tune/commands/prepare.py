"""``lit-tune prepare``."""

from lit_tune.cli import parse
from lit_tune.console import configure_logging
from lit_tune.datamodule import TokenizedDataModule


def prepare(options: list[str]) -> None:
    """Read, check and tokenize the data, cache it, and say what is in it; no weights are loaded.

    Args:
        options: The config: files and single keys.
    """
    configure_logging()
    datamodule = parse(options, "prepare").build().datamodule
    datamodule.prepare("fit")
    if datamodule.preparation.raw.has("test"):
        datamodule.prepare("test")
    print(data_report(datamodule))


def data_report(datamodule: TokenizedDataModule) -> str:
    """What was found: problem, labels with their shares, lengths, overlap."""
    spec, preparation = datamodule.spec, datamodule.preparation
    assert spec is not None
    lines = [f"\nproblem  {spec.problem_type}"]
    total = max(1, spec.total)
    width = max((len(n) for n in spec.label_names), default=0)
    for name, count in zip(spec.label_names, spec.label_counts, strict=False):
        lines.append(f"  {name:<{width}}  {count:>9,}  {count / total:6.1%}")
    if preparation.examination.val_overlap:
        lines.append(f"overlap  {preparation.examination.val_overlap:.1%} of the val texts also stand in train")
    base = {k: v for k, v in spec.baseline.items() if k in ("accuracy", "f1_micro", "mse", "loss")}
    if base:
        lines.append("baseline " + ", ".join(f"{k} {v:.4f}" for k, v in base.items()))
    lines.append(f"cache    {preparation.cache_dir / (datamodule.fingerprint or '')}")
    return "\n".join(lines)
