"""Every fault of the table ends as it should: exit code, place, remedy, few lines, no traceback, no weights read."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from faults.registry import FAULTS, NOT_HERE, Fault, Scene
from transformers import PreTrainedModel

from lit_tune.__main__ import main
from lit_tune.console import console
from lit_tune.errors import MAX_MESSAGE_LINES
from lit_tune.preflight.config_rules import RULES
from lit_tune.preflight.trainer_rules import REFUSED

for path in sorted(Path(__file__).parent.glob("*_faults.py")):
    if not path.name.startswith("test_"):
        importlib.import_module(f"faults.{path.stem}")


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The models whose weights were read."""
    names: list[str] = []
    load = PreTrainedModel.from_pretrained.__func__

    def recorded(cls, name, *arguments, **options):
        names.append(str(name))
        return load(cls, name, *arguments, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(recorded))
    return names


def command(fault: Fault, scene: Scene) -> list[str]:
    """The config of a case in a file, as somebody would write it."""
    config: dict = {"run_dir": str(scene.folder / "run"), "model.model_name_or_path": str(scene.model)}
    config |= {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": False} | fault.write(scene)
    nested: dict = {}
    for key, value in config.items():
        *sections, last = key.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = yaml.safe_load(value) if isinstance(value, str) and value[:1] in "[{tf" else value
        if isinstance(node[last], Path):
            node[last] = str(node[last])
    (scene.folder / "config.yaml").write_text(yaml.safe_dump(nested))
    return [fault.verb, "--config", str(scene.folder / "config.yaml")]


def rows() -> list:
    """The first case of each number in ``make test``, the others in ``make test-slow``."""
    first: dict[int, Fault] = {}
    cases = []
    for fault in sorted(FAULTS, key=lambda f: f.number):
        is_first = first.setdefault(fault.number, fault) is fault
        marks = [] if is_first else [pytest.mark.slow]
        cases.append(pytest.param(fault, id=f"{fault.number} {fault.name}", marks=marks))
    return cases


@pytest.mark.parametrize("fault", rows())
def test_a_fault_ends_as_the_table_says(fault, tiny_model_dir, tmp_path, monkeypatch, capsys, loaded):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    scene = Scene(tmp_path, Path(shutil.copytree(tiny_model_dir, tmp_path / "tiny")))
    tokens = command(fault, scene)
    loaded.clear()
    capsys.readouterr()
    if fault.verb == "check":
        tokens += ["--format", "json"]
    monkeypatch.setattr(console, "quiet", True)  # what a run says of itself on its way
    code = main([*tokens, "--allow-import", "asks_for_places"])
    out, err = capsys.readouterr()
    assert code == fault.code, err
    assert "Traceback" not in out + err
    assert not (tmp_path / "ran").exists(), "code that came with data or model was run"
    report = json.loads(out) if fault.verb == "check" else {"errors": None, "warnings": []}
    if code == 0:
        told = [out, *(f"{f['where']}: {f['what']}" for f in report["warnings"])]
    else:
        assert loaded == [], "weights were read before the fault was found"
        blocks = [block for block in err.split("\n\n") if "Fix: " in block]
        told = [" ".join(block.split()) for block in blocks]
        assert len(told) == len(report["errors"] or told)
        assert all(len(block.splitlines()) <= MAX_MESSAGE_LINES for block in blocks), err
    told = [text.replace(f"{tmp_path}/", "") for text in told]
    for part in fault.says:
        assert any(part in text for text in told), (part, told)
    if fault.place:
        assert any(text.startswith(fault.place) for text in told), (fault.place, told)


def test_every_fault_has_a_row_or_a_reason():
    """51 to 53 are found where a run starts, before any weights too."""
    rows = {f.number for f in FAULTS} | NOT_HERE.keys()
    assert sorted(set(range(1, 51)) - rows) == []
    assert sorted({f.number for f in FAULTS} & NOT_HERE.keys()) == []


def test_at_least_50_of_53_faults_of_data_model_and_config_are_found_before_weights_load():
    before = {f.number for f in FAULTS if f.number <= 53} | {42, 51, 52, 53}
    assert len(before) >= 50


def test_there_are_at_least_25_contradictions():
    import inspect

    from lit_tune.preflight import config_rules, trainer_rules

    raised = sum(inspect.getsource(m).count("yield ") for m in (config_rules, trainer_rules)) - 1 + len(REFUSED)
    assert len(RULES) >= 10
    assert raised >= 25
