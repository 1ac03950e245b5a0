"""README and CONTRIBUTING say what is true: their commands parse, their keys exist, their tables and trees are ours."""

import re
import shlex
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from test_architecture import RANK
from toy import make_tiny_model, toy_rows, write_csv

import lit_tune
from lit_tune import __main__ as program
from lit_tune import errors, imports
from lit_tune.__main__ import VERBS, main
from lit_tune.cli import parse
from lit_tune.config.sections import all_keys, parameter_at, section_names, tasks
from lit_tune.config.training_arguments import as_markdown
from lit_tune.errors import LitTuneError
from lit_tune.stats.verdict import State
from lit_tune.tasks.base import Task

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md", "configs/README.md")}
README = PAGES["README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KEYS = all_keys(tasks()["SequenceClassification"])
CUDA, MPS = torch.cuda.is_available(), torch.backends.mps.is_available()
UNAVAILABLE = {  # a machine without the device refuses these, and rightly
    "trainer.accelerator: gpu": not (CUDA or MPS),
    "trainer.accelerator: mps": not MPS,
    "trainer.devices: 2": MPS or (CUDA and torch.cuda.device_count() < 2),
    "trainer.precision: 16-mixed": not CUDA,
    "optimizer.name: adamw_8bit": not (CUDA and find_spec("bitsandbytes")),
}


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return [text for name, text in FENCED.findall(page) if name == language]


def indented(page: str) -> list[str]:
    """Lines of indented blocks: shell commands and what they print."""
    return [line.strip() for line in FENCED.sub("", page).splitlines() if line.startswith("    ")]


def spans(page: str) -> list[str]:
    """Inline code."""
    return [" ".join(s.split()) for s in re.findall(r"`([^`]+)`", FENCED.sub("", page))]


def table(page: str, header: str) -> list[str]:
    """First column of the table under a header line, without markup."""
    lines = page.split(f"{header}\n", 1)[1].splitlines()[1:]
    rows = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [row.split("|")[1].strip().strip("`") for row in rows]


def commands() -> list[str]:
    """Every ``lit-tune verb ...`` of the pages."""
    found = []
    for page in PAGES.values():
        for text in [*indented(page), *spans(page)]:
            found += re.findall(r"(?<![\w/-])lit-tune ([a-z]+(?: .*)?)$", text)
    return sorted(set(found))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder in which the files of the commands exist: the configs, one of the reader's own, and a finished run's."""
    text = "model: {model_name_or_path: m}\ndata: {train: a.csv"
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my.yaml").write_text(text + ", test: b.csv, predict: c.csv}\n")
    for run in ("mine", "my_run"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "config.yaml").write_text(text + "}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands_to_test():
    verbs = {command.split()[0] for command in commands()}
    assert verbs == VERBS.keys()


@pytest.mark.parametrize("command", commands())
def test_a_command_parses(command, folder, capsys, monkeypatch):
    monkeypatch.setattr(imports, "_added", [])  # what a command allows is allowed to no other test
    verb, *options = shlex.split(command.replace("<config>", "my.yaml"), comments=True)
    assert verb in VERBS
    if verb not in ("schema", "completion") and "--help" not in options:
        if all(o.startswith("--") and "." not in o for o in options):
            options += ["--config", "my.yaml"]  # the verb alone or with a flag, in a sentence
        options.append("--print_config")
    code = main([verb, *options])
    assert code == 0, capsys.readouterr().err


def test_every_key_exists():
    sections = "|".join(section_names())
    pattern = re.compile(rf"(?<![\w./-])(?:--)?((?:{sections})\.[a-z_][a-z_0-9.]*[a-z_0-9])")
    found = set()
    for page in PAGES.values():
        for text in [*indented(page), *spans(page), *blocks(page, "yaml")]:
            found |= set(pattern.findall(text))
    assert len(found) > 60
    assert [key for key in sorted(found) if parameter_at(key, KEYS) is None and key != "task.init_args"] == []


def settings() -> list[str]:
    """Every ``key: value`` in a sentence or table."""
    found = {s for page in PAGES.values() for s in spans(page) if ": " in s and parameter_at(s.split(": ")[0], KEYS)}
    return sorted(found)


@pytest.mark.parametrize("setting", settings())
def test_a_setting_is_accepted(setting):
    key, value = setting.split(": ", 1)
    refused = pytest.raises(LitTuneError) if UNAVAILABLE.get(setting) else nullcontext()
    with refused:
        parse(["--data.train", "a.csv", "--model.model_name_or_path", "m", f"--{key}={value}"])


def test_the_config_parses_and_the_parts_on_top_of_it(tmp_path):
    whole, *parts = blocks(README, "yaml")
    (tmp_path / "c.yaml").write_text(whole)
    parse(["--config", str(tmp_path / "c.yaml")])
    for part in parts:
        (tmp_path / "part.yaml").write_text(part)
        parse(["--config", str(tmp_path / "c.yaml"), "--config", str(tmp_path / "part.yaml")])


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = blocks(README, "python")
    make_tiny_model(tmp_path / "google-bert" / "bert-base-uncased")
    write_csv(tmp_path / "my.csv", toy_rows(40))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert 0 <= float(re.findall(r"[\d.]+", capsys.readouterr().out)[-1]) <= 1
    assert (tmp_path / "runs" / "from_python" / "best" / "model.safetensors").is_file()


def test_the_table_of_training_arguments_is_ours():
    shown = re.search(r"<!-- TrainingArguments: .*? -->(.*)<!-- end of TrainingArguments -->", README, re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == as_markdown()


def test_the_tables_of_verbs_states_and_exit_codes_are_complete():
    assert table(README, "| `lit-tune ...` | does |") == list(VERBS)
    assert sorted(table(README, "| state | when |")) == sorted(State)
    codes = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LitTuneError)}
    exits = {value for name, value in vars(program).items() if name.startswith("EXIT_")}
    assert {int(c) for c in table(README, "| code | |")} == codes | exits | {0}


def test_the_tree_is_the_tree():
    tree = next(text for text in blocks(README, "") if text.startswith("lit_tune/"))
    lines = [line.split(maxsplit=1) for line in tree.splitlines()[1:]]
    there = {p.name + "/" * p.is_dir() for p in (ROOT / "lit_tune").iterdir()} - {"__pycache__/", "py.typed"}
    assert sorted(name for name, _ in lines) == sorted(there)
    assert [gloss for _, gloss in lines if not 4 <= len(gloss.split()) <= 8] == []


def test_the_ranks_of_contributing_are_those_of_the_architecture_test():
    rows = re.findall(r"^\| (\d+) \| ((?:`\w+` ?)+)\|", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    assert {unit: int(rank) for rank, units in rows for unit in re.findall(r"\w+", units)} == RANK


def test_contributing_explains_every_method_of_a_task():
    methods = {name for name in vars(Task) if not name.startswith("_")} | {"auto_class"}
    named = set(spans(PAGES["CONTRIBUTING.md"].split("## How to add a task")[1].split("## How to add\n")[0]))
    assert sorted(methods - named) == []


def test_make_targets_and_links_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, page in PAGES.items():
        wanted = {t for text in [*indented(page), *spans(page)] for t in re.findall(r"(?:^|; )make ([a-z-]+)", text)}
        assert sorted(wanted - targets) == [], name
        links = [link for link in re.findall(r"\]\(([^)]+)\)", page) if not link.startswith("http")]
        headings = {re.sub(r"[^a-z -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", page, re.M)}
        broken = [
            link
            for link in links
            if not (link[1:] in headings if link.startswith("#") else ((ROOT / name).parent / link).exists())
        ]
        assert broken == [], name


def test_the_changelog_has_this_version():
    assert f"## [{lit_tune.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
