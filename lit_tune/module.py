"""FineTuneModule: the one LightningModule. The rule of exactness lives here and nowhere else."""

from typing import Any, Literal

import lightning as L

from lit_tune.tasks.base import Task


class FineTuneModule(L.LightningModule):
    """Any Hugging Face model, trained on any task.

    Args:
        model_name_or_path: A Hub id or a folder with a model in Hugging Face format.
        task: The task (set by the ``task`` section).
        optimizer: Settings of the ``optimizer`` section.
        lr_schedule: Settings of the ``lr_schedule`` section.
        revision: Branch, tag or commit of the Hub repository.
        config_overrides: Fields of the model's config to change, e.g. ``{hidden_dropout_prob: 0.2}``.
        from_scratch: Random weights from the config alone; no weights are read.
        dtype: Type the weights are kept in. Mixed precision (``trainer.precision``) wants float32 here.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2`` ...; default: the model's own choice.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about 20-30 % slower.
        compile: Compile the model with ``torch.compile``.
        freeze: Parameters that are not trained: ``backbone``, or regular expressions searched in parameter names.
        new_head: Replace the head of a model that was trained for other labels.
        log_parameter_norms: Log the gradient norm of every parameter, not only the total.
    """

    def __init__(
        self,
        model_name_or_path: str,
        task: Task,
        optimizer: dict[str, Any] | None = None,
        lr_schedule: dict[str, Any] | None = None,
        revision: str | None = None,
        config_overrides: dict[str, Any] = {},  # noqa: B006
        from_scratch: bool = False,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        freeze: str | list[str] | None = None,
        new_head: bool = False,
        log_parameter_norms: bool = False,
    ) -> None:
        super().__init__()
        self.task = task
