"""Parts of a run that go wrong on purpose, named by class path in configs of tests."""

from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger


class LostTracker(CSVLogger):
    """A tracker whose server cannot be reached.

    Args:
        save_dir: Not used.
        from_step: It is lost from this step on.
    """

    def __init__(self, save_dir: str = ".", from_step: int = 0) -> None:
        super().__init__(save_dir)
        self.from_step = from_step

    def log_hyperparams(self, params=None):
        if self.from_step == 0:
            raise ConnectionError("tracker.example.org: Name or service not known")

    def log_metrics(self, metrics, step=None):
        if (step or 0) >= self.from_step:
            raise ConnectionError("tracker.example.org: Name or service not known")

    def save(self):
        raise ConnectionError("tracker.example.org: Name or service not known")

    def finalize(self, status):
        raise ConnectionError("tracker.example.org: Name or service not known")


class SpoiltExport(Callback):
    """What is exported is not what was trained, as a disk, a wrong ``tie_weights`` or an old library would leave it.

    Args:
        how: ``cut``: the file ends early; ``other``: other weights are written.
    """

    def __init__(self, how: str) -> None:
        self.how = how

    def on_fit_end(self, trainer, pl_module):
        save = pl_module.model.save_pretrained

        def spoilt(folder, *args, **kwargs):
            if self.how == "other":
                head = pl_module.model.classifier.weight
                head.data += torch.arange(head.numel()).reshape(head.shape)
            save(folder, *args, **kwargs)
            if self.how == "cut":
                file = Path(folder) / "model.safetensors"
                file.write_bytes(file.read_bytes()[:-100])

        pl_module.model.save_pretrained = spoilt
