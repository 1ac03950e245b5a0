"""Weights that are not trained are written once, by whoever made the base model, and not into every checkpoint."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from lit_tune.errors import StorageError
from lit_tune.models.base_reference import STORED, Reference, digest_of, dtype_name, frozen_parameters
from lit_tune.models.layers import is_packed

KEY = "frozen_weights"
"""Entry of a ``state_dict`` that stands for the parameters left out of it: name -> [dtype, hash]."""


class FrozenWeights(Callback):
    """Leaves frozen parameters out of checkpoints; loading takes them from the base model and compares their hashes.

    It hangs on the module's ``state_dict`` and ``load_state_dict``, so that everything that saves or loads a checkpoint
    goes through it. Left out is what was frozen when training began and still has the bytes it had then; buffers never.
    """

    def __init__(self) -> None:
        self.base: Reference = {}
        """The parameters that are as the base model has them."""
        self._loaded: set[str] | None = None
        self._module: LightningModule | None = None
        self._seen: dict[str, tuple[tuple[Any, ...], list[str]]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hang on the module, before a checkpoint is loaded into it."""
        self.base, self._loaded, self._seen = {}, None, {}
        if self._module is not pl_module:
            self._module = pl_module
            pl_module.register_state_dict_post_hook(partial(self.leave_out))  # torch sets an attribute on it
            pl_module.register_load_state_dict_pre_hook(self.fill_in)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the frozen parameters; one that a checkpoint brought along is not the base model's.

        One that the optimizer has is trained later: it is written from the start, so that the weights of any step can
        be loaded into the module of any other.
        """
        trained = {id(p) for optimizer in trainer.optimizers for g in optimizer.param_groups for p in g["params"]}
        self.base = {
            name: self.identity(name, parameter)
            for name, parameter in frozen_parameters(pl_module)
            if id(parameter) not in trained and (self._loaded is None or name in self._loaded)
        }

    def leave_out(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
        """Replace in a ``state_dict`` what the base model has by a reference."""
        reference = {
            name: self.base[name]
            for name, parameter in frozen_parameters(module)
            if self.base.get(name) == self.identity(name, parameter)
        }
        for name in reference:
            state_dict.pop(prefix + name, None)
        if packed := packed_names(module):
            # what they were packed from is known by the hashes of its files
            files: Reference = getattr(module, "base_reference", {})
            reference |= {name: known for name, known in files.items() if name.startswith(STORED)}
            beside = tuple(f"{prefix}{name}." for name in packed)  # the scales
            for name in [n for n in state_dict if n.removeprefix(prefix) in packed or n.startswith(beside)]:
                del state_dict[name]
        if reference:
            state_dict[prefix + KEY] = reference

    def fill_in(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Put the base model's parameters, which the module has, where the reference stands.

        Raises:
            StorageError: They are not those that the checkpoint was trained with.
        """
        reference: Reference = state_dict.pop(prefix + KEY, {})
        own = dict(module.named_parameters(remove_duplicate=False))
        files: Reference = getattr(module, "base_reference", {})
        for name, (dtype, digest) in reference.items():
            if name.startswith(STORED):
                is_same = files.get(name) == [dtype, digest]
            else:
                is_same = name in own and digest_of(own[name].detach().to(getattr(torch, dtype))) == digest
            if not is_same:
                told = name.removeprefix(STORED)
                raise StorageError(
                    f"the base model has changed: {told} is not what the checkpoint was trained with",
                    where=f"model.model_name_or_path: {getattr(module, 'model_name', 'the model')}",
                    fix="the model as it was (model.revision names a commit), or start again with another run_dir",
                )
        for name in own.keys() & {*reference, *packed_names(module)}:
            state_dict[prefix + name] = own[name].detach()
        self._loaded = set(reference)

    def identity(self, name: str, parameter: nn.Parameter) -> list[str]:
        """Data type and hash; computed again only where something wrote into the parameter."""
        state = (parameter.data_ptr(), parameter._version, parameter.dtype)
        if name not in self._seen or self._seen[name][0] != state:
            self._seen[name] = (state, [dtype_name(parameter), digest_of(parameter)])
        return self._seen[name][1]


def packed_names(module: nn.Module) -> set[str]:
    """Parameters that are quantized."""
    return {name for name, parameter in module.named_parameters(remove_duplicate=False) if is_packed(parameter)}
