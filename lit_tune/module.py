"""FineTuneModule: the one LightningModule. The rule of exactness lives here and nowhere else.

    step loss = sum of losses / sum of denominators, over the whole accumulation window and all ranks

Shapes: B examples, T tokens, C classes.
"""

import logging
from typing import Any, Literal, NoReturn

import lightning as L
import torch
from transformers import PretrainedConfig, PreTrainedModel

from lit_tune import interrupts
from lit_tune.errors import is_out_of_memory
from lit_tune.memory import explain
from lit_tune.metrics import scalars
from lit_tune.models import load
from lit_tune.models.adapter_settings import adapter_settings
from lit_tune.models.assembly import Recipe, assemble
from lit_tune.models.base_reference import Reference
from lit_tune.models.introduction import introduce
from lit_tune.models.own_class import own_config
from lit_tune.models.quantization import QuantizationType, quantization_of
from lit_tune.models.unfreeze_settings import unfreeze_settings
from lit_tune.models.unfreezing import Unfreezing, plan_stages
from lit_tune.models.vocabulary import NO_TOKENS
from lit_tune.optim.adopt import configured_settings
from lit_tune.optim.clipping import scale_and_clip
from lit_tune.optim.optimizers import OptimizerSettings, build_optimizer
from lit_tune.optim.schedules import ScheduleSettings, build_schedule, monitor_mode, move_plateaus, schedule_config
from lit_tune.optim.step_guard import StepGuard, scaler_of
from lit_tune.optim.window import Window, power_of_two_near
from lit_tune.seeds import batch_seed, seed_everything
from lit_tune.stats.settings_in_use import settings_in_use
from lit_tune.tasks.base import Batch, Spec, Task
from lit_tune.tasks.distillation import Distillation, DistillationSettings
from lit_tune.tasks.evaluation import Evaluation

log = logging.getLogger("lit_tune")
VAL_STAGES = ("val", "probe")
"""Names of the validation loaders, in the order the datamodule gives them."""


class FineTuneModule(L.LightningModule):
    """Any Hugging Face model, trained on any task.

    Args:
        model_name_or_path: Hub id or folder of a Hugging Face model, or of an adapter; or ``text_cnn``, a new one.
        task: The task (set by the ``task`` section).
        optimizer: Settings of the ``optimizer`` section.
        lr_schedule: Settings of the ``lr_schedule`` section.
        distillation: Settings of the ``distillation`` section.
        revision: Branch, tag or commit of the Hub repository.
        model_class: Class path of a model of your own, known to transformers once its module is imported.
        config_overrides: Fields of the model's config to change, e.g. ``{hidden_dropout_prob: 0.2}``.
        from_scratch: Random weights from the config alone; no weights are read.
        dtype: Type the weights are kept in. Mixed precision (``trainer.precision``) wants float32 here.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2`` ...; default: the model's own choice.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about 20-30 % slower.
        compile: Compile the model with ``torch.compile``.
        freeze: Parameters that are not trained: ``backbone``, ``layers below 4`` (layers 1 to 3 and the embeddings), or
            regular expressions searched in parameter names.
        unfreeze: What is trained later of it: ``gradual`` (one layer per epoch from the top; ``{every_steps: 9}``), or
            stages: ``[{at_epoch: 1, layers: top 2, lr: 1.0e-5}, {at_step: 500, patterns: [encoder]}]``.
        cache_features: What a frozen part of the model gives is computed once for each row and read from the disk then.
        add_tokens: Words for the vocabulary: a list, or a file, one per line; each begins as the mean of its pieces.
        add_special_tokens: The same for markers such as ``<e1>``, which are no part of a text.
        new_head: Replace the head of a model that was trained for other labels.
        adapter: Train an adapter and the head: ``lora``, ``dora``, ``rslora``, ``ia3``, ``prompt_tuning``; or with keys
            ``{type: lora, r: 8, alpha: 16, dropout: 0.0}``, or ``{class_path: peft.VeraConfig, init_args: {...}}``.
        quantization: Keep the weights under an adapter in 4 bits: ``nf4``; ``nf4_double``: their scales in 8, too.
        log_parameter_norms: Log the gradient norm of every parameter, not only the total.
    """

    def __init__(
        self,
        model_name_or_path: str,
        task: Task,
        optimizer: dict[str, Any] | None = None,
        lr_schedule: dict[str, Any] | None = None,
        distillation: dict[str, Any] | None = None,
        revision: str | None = None,
        model_class: str | None = None,
        config_overrides: dict[str, Any] = {},  # noqa: B006
        from_scratch: bool = False,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        freeze: str | list[str] | None = None,
        unfreeze: str | dict[str, Any] | list[dict[str, Any]] | None = None,
        cache_features: bool = True,
        add_tokens: str | list[str] | None = None,
        add_special_tokens: list[str] = [],  # noqa: B006
        new_head: bool = False,
        adapter: str | dict[str, Any] | None = None,
        quantization: QuantizationType | None = None,
        log_parameter_norms: bool = False,
    ) -> None:
        super().__init__()
        self.task, self.quantization, self.log_parameter_norms = task, quantization, log_parameter_norms
        self.model_name, self.revision, self.config_overrides = model_name_or_path, revision, config_overrides
        self.config_class = own_config(model_class, task.auto_class)
        self.from_scratch, self.dtype_name, self.attn_implementation = from_scratch, dtype, attn_implementation
        self.gradient_checkpointing, self.compile_model, self.new_head = gradient_checkpointing, compile, new_head
        self.freeze_patterns = [freeze] if isinstance(freeze, str) else list(freeze or [])
        self.unfreeze_settings, self.unfreezing = unfreeze_settings(unfreeze), Unfreezing()
        self.adapter, self.cache_features = adapter_settings(adapter), cache_features
        self.optimizer_settings = OptimizerSettings(**(optimizer or {}))
        self.schedule_settings = ScheduleSettings(**(lr_schedule or {}))
        self.distillation = Distillation(task, DistillationSettings(**(distillation or {})))

        self.spec: Spec | None = None
        self.tokenizer: Any = None
        self.model: PreTrainedModel | None = None
        self.base_reference: Reference = {}
        """Hashes of the weights that an adapter lies on."""
        self.new_parameters: list[str] = []
        self.guard = StepGuard(self.optimizer_settings.skip_nonfinite)
        self.num_skipped_steps = 0
        """Optimizer steps left out, by the fp16 scaler or by ``guard``; the schedule did not move on those."""
        self.is_step_skipped = False
        """Whether the newest optimizer step was left out."""
        self.stop_signal = 0
        """Largest signal received by any rank before the newest optimizer step: 0, SIGINT (2) or SIGTERM (15)."""
        self.last_step: dict[str, Any] = {}
        """Loss sum, denominator and gradient norm of the newest optimizer step."""

    # ---- building ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take spec and tokenizer from the datamodule, which has read the labels by now."""
        self.spec, self.tokenizer = self.trainer.datamodule.spec, self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        assert self.spec is not None
        self.hparams["spec"] = self.spec.to_dict()  # plain types: a checkpoint loads with weights_only=True

    def configure_model(self) -> None:
        """Load the weights, after the data was read and checked."""
        if self.model is not None:
            return
        assert self.spec is not None, "setup() reads the spec"
        if self._trainer is not None:  # a new head must not depend on whether the data came from the cache
            torch.manual_seed(self.trainer.datamodule.default_seed)  # type: ignore[attr-defined]
        fitting = self._trainer is None or self.trainer.state.fn == "fit"
        config, unused = self.build_config(self.spec), self.task.unused_modules
        made = assemble(self.task.auto_class, self.recipe, config, fitting, unused)
        self.model, self.base_reference, self.new_parameters = made
        later = self.unfreeze_settings if fitting else None
        self.unfreezing = Unfreezing(self.model, plan_stages(self.model, later, unused))
        self.task.prepare_model(self.model, self.tokenizer)
        self.evaluation = Evaluation(self.task, self.spec, (*VAL_STAGES, "test"), self.tokenizer)
        if self.compile_model:
            self.model.compile()  # in place: names in checkpoints and exports stay those of transformers

    @property
    def recipe(self) -> Recipe:
        """How the model is put together."""
        weights = (self.model_name, self.revision, self.from_scratch, self.dtype_name, self.attn_implementation)
        how = (self.new_head, self.gradient_checkpointing, tuple(self.freeze_patterns), self.adapter)
        tokens = self.trainer.datamodule.reader.new_tokens if self._trainer else NO_TOKENS  # type: ignore[attr-defined]
        return Recipe(*weights, *how, tokens, quantization_of(self.quantization, self._trainer))

    def build_config(self, spec: Spec) -> PretrainedConfig:
        """The model's config with labels, overrides and a pad token."""
        config = load.load_config(self.model_name, self.revision, self.config_overrides, self.config_class)
        self.task.configure(config, spec)
        if self.tokenizer is not None:
            load.fit_to_tokenizer(self.tokenizer, config, self.from_scratch)
        return config

    @property
    def evaluated(self) -> dict[str, dict[str, Any]]:
        """Last computed metrics by stage (``val``, ``probe``, ``test``), tensors and matrices included."""
        return self.evaluation.computed

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the settings; total steps from the datamodule."""
        assert self.model is not None
        # a fused optimizer unscales inside step(), after our hook has read the gradients (norm 5903 for 5.76)
        fused_allowed, later, data = scaler_of(self.trainer) is None, self.unfreezing.stages, self.trainer.datamodule  # type: ignore[attr-defined]
        per_epoch = data.steps_per_epoch() if later else None
        optimizer = build_optimizer(self.optimizer_settings, self.model, fused_allowed, later, per_epoch)
        mode = monitor_mode(self.schedule_settings, self.task.metric_names(self.spec) if self.spec else {})
        scheduler = build_schedule(self.schedule_settings, optimizer, data.total_steps(), mode)
        self.configured = configured_settings(optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": schedule_config(self.schedule_settings, scheduler)}

    # ---- training: the numerics seam ---------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """One line that says what is trained where."""
        assert self.model is not None
        self.distillation.start(self)
        new = [] if self.trainer.ckpt_path is not None else self.new_parameters  # else the checkpoint has brought them
        ranks = f" x {self.trainer.world_size}" if self.trainer.world_size > 1 else ""
        how = f"precision {self.trainer.precision}, on {self.device}{ranks}"
        introduce(self.model, self.model_name, new, self.unfreezing.stages, how)

    def on_train_start(self) -> None:
        """Scale of the losses, an empty window, and what a resumed run has left out before."""
        assert self.spec is not None
        effective_batch: int = self.trainer.datamodule.effective_batch  # type: ignore[attr-defined]
        self._loss_scale = power_of_two_near(effective_batch * self.task.targets_per_row(self.spec))
        # DDP's own sum runs during the backward pass: a rank that is out of memory there would leave the others waiting
        self.sums_gradients = self.trainer.world_size > 1 and getattr(self.trainer.datamodule, "auto_batch", False)  # type: ignore[attr-defined]
        if self.sums_gradients:
            self.trainer.strategy.model.require_backward_grad_sync = False  # type: ignore[union-attr, assignment]
        self.guard.num_left_out = 0 if scaler_of(self.trainer) is not None else self.num_skipped_steps
        self.start_window()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """What is trained and what is random depends on nothing but the place in the run."""
        self.unfreezing.follow(self.trainer)
        base, trainer = self.trainer.datamodule.default_seed, self.trainer  # type: ignore[attr-defined]
        seed_everything(batch_seed(base, trainer.current_epoch, batch_idx, trainer.global_rank))

    def start_window(self) -> None:
        """Forget the sums of the last accumulation window."""
        self._window = Window(self.device, self._loss_scale)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """A micro-batch: the summed loss over a constant, times what Lightning divides by."""
        assert self.spec is not None
        assert self.model is not None
        self._batch = batch
        if self._window.error is not None:
            return torch.zeros((), device=self.device, requires_grad=True)
        try:
            loss_sum, denominator = self.distillation.loss(self.task.forward(self.model, batch), batch, self.spec)
        except Exception as error:
            return self.give_step_up(error)
        if batch["is_filler"]:
            loss_sum, denominator = loss_sum * 0.0, denominator * 0.0
        self._window.add(loss_sum, denominator, batch["example_ids"], batch["labels"].numel())
        return loss_sum * (self.trainer.accumulate_grad_batches / self._loss_scale)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's."""
        try:
            super().backward(loss, *args, **kwargs)
        except Exception as error:
            self.give_step_up(error)

    def give_step_up(self, error: Exception) -> torch.Tensor:
        """Memory is exhausted. Ranks that can go on with less leave the step together, at its end.

        Returns:
            What takes part in the backward pass with nothing.

        Raises:
            OutOfMemory: At once, where this rank is alone or the run ends anyway.
        """
        if not (self.sums_gradients and is_out_of_memory(error)):
            self.reraise(error, "training", self._batch)
        self._window.error = explain(self._batch, self.device, "training", settings_in_use(self))
        self.zero_grad(set_to_none=True)
        return torch.zeros((), device=self.device, requires_grad=True)

    def reraise(self, error: Exception, doing: str, batch: Batch) -> NoReturn:
        """Exhausted memory with the batch and what to change; any other error as it is."""
        if is_out_of_memory(error):
            raise explain(batch, self.device, doing, settings_in_use(self)) from error
        raise error

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Once per optimizer step: divide by the denominator of window and ranks, measure the norm, clip.

        Lightning calls this even without a clip value, after unscaling and before the optimizer. A step that is left
        out finds no gradients, so that the optimizer changes neither weights nor its own state.

        Raises:
            NumericsError: Loss or gradient is not a number, and no further step may be left out.
            OutOfMemory: A rank has given the step up.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        totals = self._window.close(gradients, interrupts.received(), self.trainer.world_size, self.sums_gradients)
        self.stop_signal, self.is_step_skipped = totals.stop_signal, not totals.is_finite
        if self.is_step_skipped:
            for parameter in parameters:
                parameter.grad = None
            self.guard.leave_out(totals, self._window, self.trainer, self.trainer.global_step + 1)
            self.num_skipped_steps += 1
        else:
            self.guard.scaler_skips = 0
            scale_and_clip(gradients, totals.factor, totals.norm, gradient_clip_val, gradient_clip_algorithm)
        sums = totals.sums if totals.has_finite_loss else torch.zeros_like(totals.sums)
        self.last_step = {"loss_sum": sums[0], "denominator": sums[1], "grad_norm": totals.norm}
        if self.log_parameter_norms:
            named = self.model.named_parameters()  # type: ignore[union-attr]
            self.last_step["parameter_norms"] = {n: p.grad.norm() for n, p in named if p.grad is not None}
        self.start_window()

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Advance the schedule, except where the optimizer's step was left out."""
        if not (self.is_step_skipped and self.schedule_settings.interval == "step"):
            super().lr_scheduler_step(scheduler, metric)

    # ---- evaluation: every example once ------------------------------------------------------------------------------

    def evaluate_batch(self, stage: str, batch: Batch) -> None:
        """Add a batch to a stage's sums; a filler takes part in nothing."""
        if batch["is_filler"]:
            return
        try:
            self.evaluation.add(stage, self.model, batch)
        except Exception as error:
            self.reraise(error, stage, batch)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Val, or the probe of train."""
        self.evaluate_batch(VAL_STAGES[dataloader_idx], batch)

    def on_validation_epoch_end(self) -> None:
        """Hand the numbers to the callbacks; the metrics logger writes them."""
        if self.trainer.sanity_checking:
            for stage in VAL_STAGES:
                self.evaluation.reset(stage)
            return
        loaders = self.trainer.val_dataloaders
        stages = VAL_STAGES[: len(loaders) if isinstance(loaders, list) else 1]
        for stage in stages:
            self.log_dict(self.evaluation.finish(stage), logger=False, add_dataloader_idx=False)
        move_plateaus(self.trainer.lr_scheduler_configs, scalars(self.evaluated["val"]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The test split."""
        self.evaluate_batch("test", batch)

    def on_test_epoch_end(self) -> None:
        """Final numbers of the test split."""
        self.log_dict(self.evaluation.finish("test"), logger=False)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """One record per row; none for a filler."""
        if batch["is_filler"]:
            return []
        try:
            return self.evaluation.records(self.model, batch)
        except Exception as error:
            self.reraise(error, "predict", batch)

    advice_settings = settings_in_use
