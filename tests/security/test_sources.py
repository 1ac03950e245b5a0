"""No source of the project loads a pickle, runs what it is given, or trusts a repository's code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKERS = {"corpus.py", "test_watched.py", "test_sources.py"}
"""They make and spring the traps of these tests."""

REFUSALS = {"tests/checkpointing/test_durable_io.py"}
"""They ask for weights_only=False and see it refused."""

SOURCES = [
    path
    for folder in ("lit_tune", "benchmarks", "configs", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name not in MAKERS
]
PRODUCT = [path for path in SOURCES if (ROOT / "lit_tune") in path.parents]

CALLS = {
    "pickle.load",
    "pickle.Unpickler",
    "dill.load",
    "dill.loads",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "os.system",
    "os.popen",
    "pty.spawn",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.Loader",
    "yaml.UnsafeLoader",
    "torch.hub.load",
}
PRODUCT_CALLS = CALLS | {"pickle.loads", "eval", "exec", "compile", "__import__", "os.environ.copy", "input"}
"""Also no dump of the environment, and no prompt. (Tests see whether an object survives pickling.)"""


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def wrong_calls(tree: ast.AST, banned: set[str]) -> Iterator[tuple[int, str]]:
    """Line and reason of what is not allowed."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        given = {k.arg: k.value for k in node.keywords if k.arg}
        is_true = {key for key, value in given.items() if isinstance(value, ast.Constant) and value.value is True}
        is_false = {key for key, value in given.items() if isinstance(value, ast.Constant) and value.value is False}
        if name in banned:
            yield node.lineno, name
        if name == "torch.load" and "weights_only" not in is_true:
            yield node.lineno, "torch.load without weights_only=True"
        if "weights_only" in is_false:
            yield node.lineno, "weights_only=False"
        if "trust_remote_code" in given and "trust_remote_code" not in is_false:
            yield node.lineno, "trust_remote_code"
        if is_true & {"allow_pickle", "shell", "allow_all_kernels"}:
            yield node.lineno, f"{is_true & {'allow_pickle', 'shell', 'allow_all_kernels'}}"
        if name == "yaml.load" and not any(name_of(a) == "_Loader" for a in node.args):
            yield node.lineno, "yaml.load"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("torch.load(p)", "torch.load without weights_only=True"),
        ("torch.load(p, weights_only=flag)", "torch.load without weights_only=True"),
        ("trainer.fit(m, weights_only=False)", "weights_only=False"),
        ("A.from_pretrained(n, trust_remote_code=flag)", "trust_remote_code"),
        ("subprocess.run(c, shell=True)", "{'shell'}"),
        ("np.load(p, allow_pickle=True)", "{'allow_pickle'}"),
        ("pickle.load(f)", "pickle.load"),
        ("yaml.load(t, yaml.SafeLoader)", "yaml.load"),
    ],
)
def test_each_rule_finds_what_it_is_about(source, reason):
    assert [why for _, why in wrong_calls(ast.parse(source), CALLS)] == [reason]


def test_nothing_unpickles_runs_texts_or_trusts_code():
    assert len(SOURCES) > 200
    problems = [
        f"{path.relative_to(ROOT)}:{line} {why}"
        for path in SOURCES
        for line, why in wrong_calls(ast.parse(path.read_text("utf-8")), PRODUCT_CALLS if path in PRODUCT else CALLS)
        if not (why == "weights_only=False" and path.relative_to(ROOT).as_posix() in REFUSALS)
    ]
    assert problems == []


def test_models_are_loaded_from_safetensors_only():
    """``from_pretrained`` of a class that has weights; configs and tokenizers have none.

    peft has no such argument: it takes safetensors where there are any, and a folder without is refused before
    (``tests/models/test_adapters.py``).
    """
    exempt = ("AutoConfig", "config_class", "AutoTokenizer", "peft.PeftModel")
    problems = []
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and name_of(node.func).endswith(".from_pretrained")):
                continue
            given = {k.arg for k in node.keywords}
            if not name_of(node.func).startswith(exempt) and "use_safetensors" not in given:
                problems.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert problems == []
