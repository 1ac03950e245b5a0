"""The import allow-list: what is refused must not have been imported."""

import subprocess
import sys

import pytest
import torch

from lit_tune import imports
from lit_tune.errors import ConfigError
from lit_tune.imports import ALLOWED, allow_import, allowed_imports, import_class, is_allowed

OPTIM = ("torch.optim",)


@pytest.fixture(autouse=True)
def _list_is_put_back(monkeypatch):
    monkeypatch.setattr(imports, "_added", [])


@pytest.fixture
def booby_trap(tmp_path, monkeypatch):
    """A package on the path that leaves a trace when it is imported."""
    (tmp_path / "booby_trap.py").write_text(
        "from pathlib import Path\nPath(__file__).with_suffix('.sprung').touch()\nclass Loss: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "booby_trap.sprung"
    sys.modules.pop("booby_trap", None)


def test_bare_name_is_found_in_the_search_modules():
    assert import_class("AdamW", where="optimizer.name", search=OPTIM) is torch.optim.AdamW


def test_dotted_path_is_found():
    assert import_class("torch.nn.CrossEntropyLoss", where="task.loss") is torch.nn.CrossEntropyLoss


def test_a_path_outside_the_list_is_refused_before_it_is_imported(booby_trap):
    with pytest.raises(ConfigError, match=r"--allow-import booby_trap") as caught:
        import_class("booby_trap.Loss", where="task.loss")
    assert caught.value.exit_code == 2
    assert caught.value.where == "task.loss"
    assert not booby_trap.exists()
    assert "booby_trap" not in sys.modules


def test_allow_import_lets_exactly_that_package_in(booby_trap):
    allow_import("booby_trap")
    assert import_class("booby_trap.Loss", where="task.loss").__name__ == "Loss"
    assert booby_trap.exists()
    assert not is_allowed("booby_trap_2.Loss")
    assert allowed_imports() == [*ALLOWED, "booby_trap"]


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "transformers.pipeline",
        "lit_tune.imports.allow_import",
        "jsonargparse.set_parsing_settings",
        "torch.optim.lr_scheduler.partial",  # functools.partial through an allowed module
        "torch.optim.lr_scheduler.Counter",
        "torch.optim.lr_scheduler.math.os",
        "torch.optim.lr_scheduler",  # a module
        "torch.optim.lr_scheduler.types",  # a module of another package
        "torch.nn.functional.relu",  # a function
        "torch.optim._functional.adam",
        "torch.optim.AdamW.__init__",
        "torch.optim.lr_scheduler._LRScheduler",
        "lightning.pytorch.callbacks.model_checkpoint.os",
        "transformers.optimization.logging",
    ],
)
def test_gadgets_are_refused(path):
    with pytest.raises(ConfigError):
        import_class(path, where="optimizer.name")


def test_a_reexported_class_is_refused_by_the_place_it_is_defined_in(booby_trap, tmp_path):
    (tmp_path / "front.py").write_text("from collections import Counter\n")
    allow_import("front")
    with pytest.raises(ConfigError, match=r"it is collections\.Counter.*\n.*--allow-import collections"):
        import_class("front.Counter", where="task.loss")
    del sys.modules["front"]


def test_unknown_names_come_with_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean RMSprop"):
        import_class("torch.optim.RMSpop", where="optimizer.name")
    with pytest.raises(ConfigError, match="did you mean RMSprop"):
        import_class("RMSpop", where="optimizer.name", search=OPTIM)
    with pytest.raises(ConfigError, match="did you mean adafactor"):
        import_class("adafactr", where="optimizer.name", aliases=["adamw", "adafactor"])


def test_a_suggestion_is_never_something_that_would_be_refused():
    with pytest.raises(ConfigError) as caught:
        import_class("Countr", where="lr_schedule.name", search=("torch.optim.lr_scheduler",))
    assert "Counter" not in str(caught.value)


@pytest.mark.parametrize("path", ["torch.optim.Ad amW", "torch..optim", ".AdamW", "torch.optim."])
def test_nonsense_is_not_a_class_path(path):
    with pytest.raises(ConfigError, match="not a class path"):
        import_class(path, where="optimizer.name")


def test_missing_packages_and_modules_are_told_apart():
    with pytest.raises(ConfigError, match=r"there is no module torch\.optim\.rmspop"):
        import_class("torch.optim.rmspop.RMSprop", where="optimizer.name")
    allow_import("no_such_package")
    with pytest.raises(ConfigError, match=r"not installed\nFix: pip install 'no_such_package'"):
        import_class("no_such_package.Loss", where="task.loss")


def test_a_module_that_fails_at_import_is_the_users_error(tmp_path, monkeypatch):
    (tmp_path / "broken_losses.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    allow_import("broken_losses")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        import_class("broken_losses.Loss", where="task.loss")


@pytest.mark.parametrize("prefix", ["", "a b", "my-package", "my_package.", "*"])
def test_allow_import_wants_a_dotted_name(prefix):
    with pytest.raises(ConfigError, match="not the dotted name"):
        allow_import(prefix)


def test_allow_import_refuses_the_package_that_holds_the_list():
    with pytest.raises(ConfigError, match="no config may name it"):
        allow_import("jsonargparse")


def test_jsonargparse_takes_the_same_list_and_comes_to_the_same_verdict():
    # In its own process: jsonargparse's settings are global and cannot be taken back.
    script = """
from jsonargparse import set_parsing_settings
from jsonargparse._common import check_import_path
from lit_tune.imports import allowed_imports, is_allowed
set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed_imports())
for path in ["torch.optim.SGD", "torch.load", "os.system", "lit_tune.tasks.base.Task", "lit_tune.imports.allow_import",
             "functools.partial", "lightning.pytorch.callbacks.Timer", "lightning.pytorch.cli.LightningCLI"]:
    try:
        check_import_path(path)
        theirs = True
    except Exception:
        theirs = False
    assert theirs == is_allowed(path), path
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_module_itself_needs_no_torch():
    script = "import sys, lit_tune.imports; assert 'torch' not in sys.modules and 'jsonargparse' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
