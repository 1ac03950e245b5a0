"""Machine, packages, folders: rules on machines that are not this one, and probes on this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_tune.errors import ConfigError, HardwareError, StorageError
from lit_tune.preflight.advice_rules import advice
from lit_tune.preflight.devices import Machine, device_findings, this_machine
from lit_tune.preflight.situation import Situation
from lit_tune.preflight.step_rules import plan_of, step_findings
from lit_tune.preflight.storage import probe, room
from lit_tune.preflight.versions import (
    KNOWN_BAD,
    contradictions,
    known_bad,
    missing_packages,
    refuse_malware,
    version_findings,
)


def situation(accelerators=(), num_devices=0, verb="fit", **keys) -> Situation:
    """A config with these keys (``trainer__devices=2``)."""
    config: dict = {
        "data": {"train_batch_size": 16},
        "trainer": {"max_epochs": 3},
        "optimizer": {"lr": 5e-5, "name": "adamw"},
    }
    for key, value in keys.items():
        section, name = key.split("__")
        config.setdefault(section, {})[name] = value
    return Situation(config, verb, accelerators, num_devices)


def told(findings) -> list[tuple[str, str]]:
    findings = list(findings)
    assert all(f.problem.fix and f.problem.where for f in findings)
    return [(f.severity, f.problem.what) for f in findings]


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "accelerator", "part"),
    [
        (Machine(nvidia_devices=2, cuda_build=None), "auto", "torch .* is a build for CPUs"),
        (Machine(nvidia_devices=2, cuda_build="12.8"), "auto", "torch cannot use them with CUDA 12.8"),
        (Machine(nvidia_devices=2, cuda_build="12.8", visible=""), "auto", "CUDA_VISIBLE_DEVICES='' hides 2"),
        (Machine(is_apple=True), "auto", "torch cannot use Apple's GPU"),
        (Machine(num_cuda=1, nvidia_devices=1, cuda_build="12.8"), "cpu", "this machine has a CUDA GPU"),
        (Machine(has_mps=True, is_apple=True), "cpu", "this machine has Apple's GPU"),
    ],
)
def test_a_gpu_that_is_not_used_is_told(machine, accelerator, part):
    import re

    ((severity, what),) = told(device_findings(situation(trainer__accelerator=accelerator), machine))
    assert severity == "warning"
    assert re.search(part, what)


def test_a_machine_without_a_gpu_and_one_that_uses_it_are_fine():
    assert told(device_findings(situation(), Machine())) == []
    gpu = Machine(num_cuda=1, nvidia_devices=1, cuda_build="12.8", capabilities=((9, 0),))
    assert told(device_findings(situation(["cuda"], 1, trainer__precision="bf16-mixed"), gpu)) == []
    hidden = Machine(nvidia_devices=1, cuda_build=None)
    assert told(device_findings(situation(trainer__accelerator="cpu"), hidden)) == []  # nobody asked for it


def test_bfloat16_on_a_gpu_that_lacks_it_is_exit_5():
    old = Machine(num_cuda=2, nvidia_devices=2, cuda_build="12.8", capabilities=((8, 0), (7, 5)))
    (finding,) = device_findings(situation(["cuda"], 2, trainer__precision="bf16-mixed"), old)
    assert isinstance(finding.problem, HardwareError)
    assert "compute capability 7.5" in finding.problem.what
    assert told(device_findings(situation(["cuda"], 2, trainer__precision="16-mixed"), old)) == []


def test_weights_that_round_their_updates_away_too_many_workers_and_no_compiler_are_told():
    (half,) = told(device_findings(situation(trainer__precision="bf16-true"), Machine()))
    assert half[1].startswith("weights kept in bfloat16 change by 1/256")
    (kept,) = told(device_findings(situation(model__dtype="float16"), Machine()))
    assert "1/2048" in kept[1]
    (many,) = told(device_findings(situation(data__num_workers=9), Machine(num_cpus=4)))
    assert many == ("warning", "9 workers share 4 processor(s)")
    (compiler,) = device_findings(situation(model__compile=True), Machine(has_compiler=False))
    assert isinstance(compiler.problem, ConfigError)


def test_looking_around_finds_the_processors_of_this_process():
    found = this_machine()
    assert found.num_cpus == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else found.num_cpus >= 1


# --- packages --------------------------------------------------------------------------------------------------------


def installed(**versions):
    return lambda package: versions.get(package.replace("-", "_"))


def test_versions_known_to_be_bad_are_errors_and_malware_is_told_first():
    found = list(known_bad(installed(lightning="2.6.3", torch="2.9.1", transformers="5.2.0")))
    assert [f.problem.where for f in found] == ["installed lightning", "installed torch", "installed transformers"]
    assert "malware" in found[0].problem.what
    assert "change every token" in str(found[0].problem.fix)
    assert "CVE-2026-58659" in next(iter(known_bad(installed(lightning="2.6.1")))).problem.what
    assert list(known_bad(installed(lightning="2.6.6", torch="2.10.0", transformers="5.3.0"))) == []
    assert {package for package, *_ in KNOWN_BAD} >= {"lightning", "torch", "transformers"}


def test_malware_is_refused_before_it_is_imported():
    with pytest.raises(HardwareError, match=r"lightning 2\.6\.2 is malware"):
        refuse_malware(installed(lightning="2.6.2"))
    refuse_malware(installed(lightning="2.6.1"))  # a hole, which a run tells; importing it does no harm
    code = (
        "import sys, lit_tune.__main__; print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "the check comes too late"


def test_a_version_below_ours_is_an_error_and_other_contradictions_are_warnings():
    needs = {
        "ours": ["torch>=2.10", "datasets>=5,<6", "wandb>=1; extra == 'wandb'", "not a requirement ;;"],
        "datasets": ["fsspec<=2023.10,>=2023.1"],
    }
    found = told(
        contradictions("ours", installed(torch="2.9", datasets="6.1", fsspec="2024.6"), lambda p: needs.get(p, []))
    )
    assert found == [
        ("error", "ours needs torch>=2.10, installed is 2.9"),
        ("warning", "ours needs datasets<6,>=5, installed is 6.1"),
        ("warning", "datasets needs fsspec<=2023.10,>=2023.1, installed is 2024.6"),
    ]


def test_the_packages_of_this_test_are_fine():
    assert [f for f in version_findings() if f.is_error] == []


def test_a_setting_that_needs_a_package_names_it():
    found = missing_packages(
        situation(optimizer__name="adamw_8bit", model__attn_implementation="flash_attention_2"), installed()
    )
    assert [f.problem.where for f in found] == ["optimizer.name", "model.attn_implementation"]
    s = Situation({"logger": ["csv", "wandb"]}, "fit")
    assert "lit-tune[wandb]" in str(missing_packages(s, installed())[0].problem.fix)
    assert missing_packages(s, installed(wandb="0.20")) == []


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    assert probe(tmp_path / "not" / "there", "run_dir", "x") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_exit_7(tmp_path, where):
    (tmp_path / "file").write_text("")
    (finding,) = probe(tmp_path / where, "run_dir", "another")
    assert isinstance(finding.problem, StorageError)
    assert finding.problem.where == "run_dir"


def test_room_is_an_error_where_it_lacks_and_a_warning_where_it_will(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert room(tmp_path / "x", 0, 0) == []
    (lacks,) = room(tmp_path / "x", free * 2, free * 3)
    assert isinstance(lacks.problem, StorageError)
    (later,) = room(tmp_path / "x", 1, free * 3)
    assert later.severity == "warning"


# --- steps -----------------------------------------------------------------------------------------------------------


def steps(rows, **keys):
    s = situation(**keys)
    return told(step_findings(s, plan_of(s, rows)))


def test_rows_and_batches_that_fit_give_nothing():
    assert steps(1000) == []
    assert steps(10) == []  # a batch that is not full is no fault of one process
    assert steps(None, trainer__max_steps=100) == []


def test_rows_that_do_not_fill_the_devices_or_the_accumulation_are_errors():
    assert steps(31, trainer__devices=2)[0] == (
        "error",
        "31 train rows do not fill one batch of 16 on each of 2 devices",
    )
    assert steps(32, trainer__devices=2) == []
    assert (
        steps(32, trainer__accumulate_grad_batches=3)[0][1] == "3 batches make a step, and 32 rows are 2 batches of 16"
    )
    assert steps(33, trainer__accumulate_grad_batches=3) == []
    assert "is no batch" in steps(100, trainer__limit_train_batches=0.1)[0][1]


def test_what_never_happens_in_so_few_steps_is_told():
    s = Situation({**situation().config, "eval_every_steps": 50, "early_stopping": {"patience": 4}}, "fit")
    plan = plan_of(s, 160)
    assert (plan.batches, plan.steps_per_epoch, plan.steps, plan.validations(50)) == (10, 10, 30, 1)
    found = told(step_findings(s, plan))
    assert [severity for severity, _ in found] == ["warning", "warning"]
    assert "the run has 30 steps, so that the run is validated at its end only" in found[0][1]
    assert "validated 1 time(s), so that 4 without improvement" in found[1][1]


@pytest.mark.parametrize(
    ("devices", "accelerators", "expected"),
    [
        ("auto", (), 1),
        ("auto", ("cuda",), 4),
        (-1, ("cuda",), 4),
        (2, (), 2),
        ("2", (), 2),
        ([0, 2], ("cuda",), 2),
        ("0,3", ("cuda",), 2),
    ],
)
def test_processes_are_counted_as_lightning_does(devices, accelerators, expected):
    assert situation(accelerators, 4, trainer__devices=devices).num_ranks == expected


# --- advice ----------------------------------------------------------------------------------------------------------


def test_rates_that_forget_or_stand_still_and_a_test_split_that_chose_the_weights_are_told(tmp_path):
    assert advice(situation()) == []
    assert "is high for a pretrained model" in told(advice(situation(optimizer__lr=1e-3)))[0][1]
    assert advice(situation(optimizer__lr=1e-3, model__freeze="backbone")) == []
    assert advice(situation(optimizer__lr=1e-3, model__from_scratch=True)) == []
    assert advice(situation(optimizer__lr=0.1, optimizer__name="sgd")) == []
    assert "hardly changes anything" in told(advice(situation(optimizer__lr=1e-9)))[0][1]
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    same = situation(data__val=str(tmp_path / "a.csv"), data__test=[str(tmp_path / "link.csv")])
    assert "val and test are the same rows" in told(advice(same))[0][1]
    assert advice(situation(data__val="a.csv", data__test=str(Path("b.csv")))) == []


def test_more_batches_in_a_step_are_no_more_negatives():
    def found(accumulate=1, devices=1, **given):
        task = {"class_path": "lit_tune.tasks.sentence_embedding.SentenceEmbedding", "init_args": given}
        s = situation(trainer__accumulate_grad_batches=accumulate, trainer__devices=devices)
        return told(advice(Situation({**s.config, "task": task}, "fit")))

    assert (
        "16 rows are compared with each other, not the 64" in found(accumulate=2, devices=2, loss="contrastive")[0][1]
    )
    assert found(loss="contrastive") == found(accumulate=4, loss="contrastive", group_size=16) == []
    assert found(accumulate=4, loss="cosine") == []
