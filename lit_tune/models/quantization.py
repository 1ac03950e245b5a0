"""``model.quantization``: the base model of an adapter in 4 bits a weight (QLoRA, https://arxiv.org/abs/2305.14314).

bitsandbytes is imported where it is used. Its int8 is not offered: that rounds activations, too, so that a step cut
into other batches would give another gradient. NF4 is unpacked before each product, in the data type of the trainer's
precision; whatever is not a linear layer, and the head, stays as it is.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from lit_tune.errors import ConfigError
from lit_tune.models.layers import head_parameter_names, is_packed
from lit_tune.models.load import LoadReport
from lit_tune.models.remote_code import code_options_of_config

log = logging.getLogger("lit_tune")

KEY = "model.quantization"
QuantizationType = Literal["nf4", "nf4_double"]
KINDS = ("lora", "ia3", "randlora", "road", "prompt_tuning", "p_tuning", "prefix_tuning")
"""Kinds of adapters that peft (0.21) can put on packed weights."""

_COMPUTE = {"bf16": "bfloat16", "16-": "float16"}
"""How ``trainer.precision`` begins -> what products are computed in; else float32."""


@dataclass(frozen=True)
class Quantization:
    """How the weights of linear layers are kept.

    Args:
        kind: ``nf4``, or ``nf4_double``: the scales of blocks are quantized, too.
        compute_dtype: What they are unpacked to.
        device: Where they are quantized: a processor and a GPU may round a number in the middle differently.
    """

    kind: QuantizationType
    compute_dtype: str = "float32"
    device: str = "cpu"

    def options(self, skip: Collection[str]) -> dict[str, Any]:
        """Arguments of ``from_pretrained``.

        Args:
            skip: Names of modules that stay as they are.
        """
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.kind == "nf4_double",
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
            llm_int8_skip_modules=sorted(skip),
        )
        return {"quantization_config": config, "device_map": {"": self.device}}


def quantization_of(kind: QuantizationType | None, trainer: Any) -> Quantization | None:
    """What ``model.quantization`` means in a run.

    Args:
        kind: The key's value.
        trainer: Lightning's; None outside of one: float32 on the CPU.
    """
    if kind is None or trainer is None:
        return None if kind is None else Quantization(kind)
    compute = next((dtype for start, dtype in _COMPUTE.items() if str(trainer.precision).startswith(start)), "float32")
    return Quantization(kind, compute, str(trainer.strategy.root_device))


def quantized(
    build: Callable[..., tuple[PreTrainedModel, LoadReport]],
    auto_class: Any,
    config: PretrainedConfig,
    how: Quantization,
    unused: tuple[str, ...] = (),
) -> tuple[PreTrainedModel, LoadReport]:
    """A model with its linear layers packed, except the head, what nothing asks, and what the weights lack.

    Args:
        build: Loads it, given ``storage``.
        auto_class: HF Auto class of the task.
        config: Of the model.
        how: How they are packed.
        unused: Modules that nothing asks.

    Raises:
        ConfigError: bitsandbytes is not installed, or the weights are quantized already.
    """
    require_package()
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError("the weights are quantized already", where=KEY, fix="the model that they were made of")
    skip = plain_modules(auto_class, config, unused)
    model, report = build(storage=how.options(skip))
    if lost := packing_layers(model) & {name.rpartition(".")[0] for name in report.new_parameters}:
        # they start from random values and are trained as a whole, such as BERT's pooler in an encoder saved without
        forget_packing(config)
        model, report = build(storage=how.options({*skip, *lost}))
    settle(model, getattr(torch, how.compute_dtype))
    forget_packing(model.config)
    return model, report


def plain_modules(auto_class: Any, config: PretrainedConfig, unused: tuple[str, ...]) -> set[str]:
    """Modules that stay as they are: the head's and the output embeddings, which transformers would pack if asked."""
    with torch.device("meta"):
        skeleton = auto_class.from_config(config, **code_options_of_config(auto_class, config, {}))
    head = {name.rpartition(".")[0] for name in head_parameter_names(skeleton)}
    output = skeleton.get_output_embeddings()
    return {
        *head,
        *(name for name, module in skeleton.named_modules() if name and (module is output)),
        *(name for name, _ in skeleton.named_modules() if name.rpartition(".")[2] in unused),
    } - {""}


def packing_layers(model: nn.Module) -> set[str]:
    """Names of the layers whose class is that of packed weights, whether they have such or not."""
    from bitsandbytes.nn import Linear4bit

    return {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def settle(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Do beforehand what bitsandbytes (0.50) would change in the weights while it computes.

    It casts biases to the type it computes in, and packs weights anew in eval mode on processors with AVX512-BF16.
    """
    for module in model.modules():
        if any(is_packed(parameter) for parameter in module.parameters(recurse=False)):
            bias: Any = getattr(module, "bias", None)
            if bias is not None:
                bias.data = bias.data.to(compute_dtype)
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def forget_packing(config: PretrainedConfig) -> None:
    """What is saved with an adapter describes the base model in full precision."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config


def cast_plain(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the data type of what is not packed, except the biases of packed layers; transformers refuses to."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if not any(is_packed(parameter) for parameter in own):
            for parameter in own:
                parameter.data = parameter.data.to(dtype)


def require_package() -> None:
    """Raise where bitsandbytes is missing.

    Raises:
        ConfigError: It is.
    """
    if not is_bitsandbytes_available():
        raise ConfigError("needs bitsandbytes, which is not installed", where=KEY, fix="pip install 'lit-tune[8bit]'")


def check_training(how: Quantization | QuantizationType | None, kind: str | None) -> None:
    """Refuse to train packed weights, or to put an adapter on them that cannot read them.

    Args:
        how: Whether weights are packed.
        kind: The adapter's, as peft calls it; None without one.

    Raises:
        ConfigError: It would.
    """
    if how is None:
        return
    if kind is None:
        raise ConfigError(
            "quantized weights cannot be trained: an adapter on them can",
            where=KEY,
            fix="model.adapter: lora; or leave model.quantization out",
        )
    if kind not in KINDS:
        raise ConfigError(
            f"an adapter of kind {kind} cannot read quantized weights", where=KEY, fix=f"one of {', '.join(KINDS)}"
        )
