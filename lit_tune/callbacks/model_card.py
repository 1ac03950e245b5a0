"""The README.md of an exported model: data, metrics, verdict, config, versions. No paths, no rows of data."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from lit_tune.callbacks.run_record import RunRecord, plain
from lit_tune.models import text_cnn
from lit_tune.models.adapters import is_adapted
from lit_tune.models.own_class import module_to_import
from lit_tune.run_dir import environment
from lit_tune.tasks.base import Task

PLACE, FOLDER = '"PATH_OR_ID"', '"PATH_OF_FOLDER"'
"""What a person, or ``lit-tune push``, puts the place of the model for."""

SECTIONS = ("task", "optimizer", "lr_schedule", "seed_everything")
"""Sections of the config that are shown; ``data`` and ``model`` may hold private paths and are told in words."""


def model_card(trainer: L.Trainer, pl_module: Any, record: RunRecord, verdict: dict[str, Any] | None) -> str:
    """Markdown with the Hub's YAML header."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    spec = pl_module.spec
    is_local = Path(pl_module.model_name).exists()
    base = Path(pl_module.model_name).resolve().name if is_local else pl_module.model_name
    adapted = is_adapted(pl_module.model)
    header: dict[str, Any] = {
        "library_name": "peft" if adapted else pl_module.task.library,
        "pipeline_tag": pl_module.task.pipeline,
        "tags": ["lit-tune"],
    }
    how = "trained" if text_cnn.is_new(pl_module.model_name) else "fine-tuned"
    if not is_local and how == "fine-tuned":
        header["base_model"] = base
    dataset = data.dataset if data.dataset and not Path(data.dataset).exists() else None
    if dataset:
        header["datasets"] = [dataset]
    rows = ", ".join(f"{len(r):,} {name}" for name, r in data.encoded.items())
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {base}, {how}",
        "",
        f"{how.capitalize()} with lit-tune on {dataset or 'local files'} ({rows} rows): "
        f"{spec.problem_type.replace('_', ' ')}.",
        "",
        usage(pl_module.task, adapted, module_to_import(pl_module.model), bool(pl_module.recipe.tokens.pieces)),
        "",
    ]
    if pl_module.quantization:
        lines += [
            f"Trained and measured on the base model in 4 bits ({pl_module.quantization}); over the base model in full "
            "precision, as above, its numbers differ by what that rounds off.",
            "",
        ]
    if spec.label_names:
        lines += ["Labels: " + ", ".join(f"`{n}`" for n in spec.label_names), ""]
    lines += metrics_table(plain(record.best), spec.baseline)
    if verdict:
        lines += ["## Overfitting", "", str(verdict.get("message", verdict.get("state"))), ""]
    lines += ["## Training", "", "```yaml", config_excerpt(record.config_yaml), "```", ""]
    versions = environment()["versions"]
    lines += ["Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()), ""]
    return "\n".join(lines)


def usage(task: Task, adapted: bool, module: str | None = None, has_new_tokens: bool = False) -> str:
    """How the folder is used.

    Args:
        task: What the model was trained for.
        adapted: The folder holds an adapter, not a whole model.
        module: What is imported first, so that transformers knows the model's class.
        has_new_tokens: The adapter has rows for tokens that the base model lacks.
    """
    auto_class = task.auto_class.__name__
    if not adapted and task.has_pipeline:
        lines = ["from transformers import pipeline", "", f'run = pipeline("{task.pipeline}", "PATH_OR_ID")']
    elif not adapted:
        lines = task.usage.splitlines() or [
            f"from transformers import {auto_class}, AutoTokenizer",
            "",
            f'model = {auto_class}.from_pretrained("PATH_OR_ID")',
            'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")',
        ]
    else:
        config = "config=AutoConfig.from_pretrained(folder)"
        grow = []
        if has_new_tokens:
            # labels of the adapter's config, rows of the base model's; then as many as there are tokens
            config = "config=config"
            grow = ["size = AutoConfig.from_pretrained(folder).vocab_size", "model.resize_token_embeddings(size)"]
        lines = [
            "from peft import PeftConfig, PeftModel",
            f"from transformers import AutoConfig, {auto_class}",
            "",
            'folder = "PATH_OR_ID"  # config.json holds the labels, adapter_config.json names the base model',
            "base = PeftConfig.from_pretrained(folder).base_model_name_or_path",
            *(["config = AutoConfig.from_pretrained(folder)"] if grow else []),
            *(["config.vocab_size = AutoConfig.from_pretrained(base).vocab_size"] if grow else []),
            f"model = {auto_class}.from_pretrained(base, {config})",
            *grow,
            "model = PeftModel.from_pretrained(model, folder)",
        ]
    first = [f"import {module}"] if module else []
    return "\n".join(["```python", *first, *lines, "```"])


def onnx_usage(task: Task, module: str | None = None) -> str:
    """How a folder with an ONNX graph is used.

    Args:
        task: What the model was trained for.
        module: What is imported first, so that the tokenizer is found.
    """
    texts, axis = '["a text", "another one"]', ""
    if task.pipeline == "question-answering":
        texts = '["Who came?"], ["Ann came."]'
    elif task.pipeline == "multiple-choice":
        texts, axis = '["It rained"] * 2, ["so he got wet.", "on Mars."]', "[None]"
    lines = [
        "import onnxruntime",
        *([f"import {module}"] if module else []),
        "from transformers import AutoTokenizer",
        "",
        f"folder = {FOLDER}",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")  # config.json names the labels',
        f'tokens = tokenizer({texts}, padding=True, return_tensors="np")',
        f"inputs = {{i.name: tokens[i.name]{axis} for i in session.get_inputs()}}",
        "outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs)))",
    ]
    return "\n".join(["```python", *lines, "```"])


def metrics_table(best: dict[str, float | None], baseline: dict[str, float]) -> list[str]:
    """Validation metrics of the exported weights beside the baseline."""
    names = [k for k in best if k.startswith("val/") and k.count("/") == 1]
    if not names:
        return ["No validation split: nothing was measured.", ""]
    lines = [f"## Validation (step {best['step']})", "", "| metric | value | baseline |", "|---|---|---|"]
    for name in names:
        short = name.removeprefix("val/")
        value, base = best[name], baseline.get(short)
        cells = ("-" if value is None else f"{value:.4f}", "" if base is None else f"{base:.4f}")
        lines.append(f"| {short} | {cells[0]} | {cells[1]} |")
    return [*lines, ""]


def config_excerpt(config_yaml: str) -> str:
    """The parts of the config that decide the result and name no path."""
    config = yaml.safe_load(config_yaml) or {}
    shown = {k: config[k] for k in SECTIONS if k in config}
    data = config.get("data") or {}
    shown["data"] = {k: data[k] for k in ("train_batch_size", "max_length", "val_fraction", "seed") if k in data}
    trainer = config.get("trainer") or {}
    keys = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "devices")
    shown["trainer"] = {k: trainer[k] for k in keys if trainer.get(k) is not None}
    return yaml.safe_dump(json.loads(json.dumps(shown, default=str)), sort_keys=False).strip()
