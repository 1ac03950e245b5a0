"""How deep each parameter of a Hugging Face model lies: embeddings 0, layers 1 to N, head N + 1.

The depth is read off the structure, not off a table of models: a *stack* is an ``nn.ModuleList`` of blocks that lies in
no other list, parameters in block i of it have depth i, and what lies before or behind it is attached to its ends.

- Several stacks follow one another in the order they are registered (T5: encoder, then decoder), but lists of equal
  length under one parent are pieces of the same layers (XLM keeps attentions, norms and feed-forward nets apart).
- Layers that share their weights are one layer (ALBERT has a stack of length 1).
- A final norm or a pooler counts with the last layer: it is pretrained with it. The head is what lies outside the base
  model: fresh weights. (ELECTRA's and BEiT's layer-wise decay draw the line in the same place.)
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PROMPT = "prompt_encoder."
"""Where peft keeps the virtual tokens of prompt tuning, beside the model: they are embeddings, no head."""

# Names where the order of registration misleads: BART registers `layernorm_embedding` behind its layers, MPNet its
# `relative_attention_bias`, OPT its `final_layer_norm` and `project_out` before them.
_BEFORE_THE_LAYERS = re.compile(r"emb|relative|position|shared|wte|wpe|rel_", re.IGNORECASE)
_BEHIND_THE_LAYERS = re.compile(r"final|ln_f|pooler|project_out", re.IGNORECASE)


@dataclass(frozen=True)
class _Block:
    """One block of a stack: its module path below the base model, and its depth."""

    path: str
    depth: int


def num_layers(model: nn.Module) -> int:
    """N, the number of layers with weights of their own; encoder and decoder are added up. 0: none were found."""
    return max((block.depth for block in _blocks(_base_model(model))), default=0)


def head_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters outside the base model, frozen ones too.

    A head that is tied to the embeddings is not a head. Of a model without a separate base model (T5 for generation)
    the output projection is the head; a base model alone has none.
    """
    base = _base_model(model)
    if base is model:
        head = _parameter_ids(model, "get_output_embeddings") - _parameter_ids(model, "get_input_embeddings")
        return {name for name, p in model.named_parameters() if id(p) in head}
    body = {id(p) for p in base.parameters()}
    outside = {name for name, p in model.named_parameters() if id(p) not in body}
    return {name for name in outside if not name.startswith(PROMPT)}


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Depth of every parameter: embeddings 0, layers 1 to N, head N + 1.

    Args:
        model: A Hugging Face model with or without a head; any module with the same structure works.

    Returns:
        Parameter name -> depth, in the order of ``model.named_parameters()``; tied parameters once, under their first
        name.
    """
    base = _base_model(model)
    blocks = _blocks(base)
    top = max((block.depth for block in blocks), default=0) + 1
    head = head_parameter_names(model)
    depth_in_base = _depths_in_base(base, blocks)
    return {name: top if name in head else depth_in_base.get(id(p), 0) for name, p in model.named_parameters()}


def _base_model(model: nn.Module) -> nn.Module:
    """The pretrained part: what ``base_model_prefix`` names, or the model itself."""
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    return base if isinstance(base, nn.Module) else model


def _parameter_ids(model: nn.Module, getter: str) -> set[int]:
    """Ids of the parameters of the module that transformers' ``get_input_embeddings`` or its sister returns, if any."""
    get: Any = getattr(model, getter, None)
    module = get() if callable(get) else None
    return {id(p) for p in module.parameters()} if module is not None else set()


def _blocks(base: nn.Module) -> list[_Block]:
    """Every block of every stack with its depth, in the order of registration."""
    blocks: list[_Block] = []
    deepest = 0
    start_of: dict[tuple[str, int], int] = {}  # (parent path, length) -> depth below the stack's first block
    inside: list[str] = []  # paths of stacks already found: lists in them (experts, sub-layers) are part of a block
    for path, module in base.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{stack}.") for stack in inside):
            continue
        paths = _flat_paths(path, module)
        if not paths or _BEFORE_THE_LAYERS.search(path):
            continue
        inside.append(path)
        key = (path.rpartition(".")[0], len(paths))
        start = start_of.setdefault(key, deepest)
        blocks += [_Block(block_path, start + i) for i, block_path in enumerate(paths, start=1)]
        deepest = max(deepest, start + len(paths))
    return blocks


def _flat_paths(path: str, modules: nn.ModuleList) -> list[str]:
    """Paths of the blocks with parameters; a list of lists (Funnel) is read as one list."""
    paths: list[str] = []
    for name, child in modules.named_children():
        if isinstance(child, nn.ModuleList):
            paths += _flat_paths(f"{path}.{name}", child)
        elif next(child.parameters(), None) is not None:
            paths.append(f"{path}.{name}")
    return paths


def _depths_in_base(base: nn.Module, blocks: list[_Block]) -> dict[int, int]:
    """Depth of every parameter of the base model, by its id."""
    depth_of_block = {block.path: block.depth for block in blocks}
    relative_embeddings = [path for path, module in base.named_modules() if hasattr(module, "rel_embeddings")]
    depths: dict[int, int] = {}
    passed = 0  # depth of the deepest block registered so far: where a final norm or a pooler belongs
    for name, parameter in base.named_parameters():
        parts = name.split(".")
        own = next((d for i in range(len(parts)) if (d := depth_of_block.get(".".join(parts[:i])))), None)
        if own is not None:
            depths[id(parameter)] = own
            passed = max(passed, own)
        elif _BEFORE_THE_LAYERS.search(name) or any(name.startswith(f"{path}.") for path in relative_embeddings):
            # DeBERTa's encoder normalises its relative embeddings with a `LayerNorm` registered behind the layers
            depths[id(parameter)] = 0
        elif _BEHIND_THE_LAYERS.search(name):
            depths[id(parameter)] = _end_of_stack(name, blocks)
        else:
            depths[id(parameter)] = passed
    return depths


def _end_of_stack(name: str, blocks: list[_Block]) -> int:
    """Depth of the last block in the deepest module around ``name`` that holds any: T5 has one final norm per stack."""
    around = name
    while around:
        around = around.rpartition(".")[0]
        inner = [b.depth for b in blocks if b.path.startswith(f"{around}." if around else "")]
        if inner:
            return max(inner)
    return 0


def is_packed(parameter: nn.Parameter) -> bool:
    """Whether bitsandbytes keeps the weights quantized, two to a byte."""
    return type(parameter) is not nn.Parameter and hasattr(parameter, "quant_state")


def size_of(parameter: nn.Parameter) -> int:
    """Numbers that a parameter stands for."""
    shape = parameter.quant_state.shape if is_packed(parameter) else parameter.shape  # type: ignore[attr-defined]
    return int(torch.Size(shape).numel())
