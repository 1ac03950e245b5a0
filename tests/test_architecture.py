"""The dependency order, file sizes and names of lit_tune, checked from source (no imports, under a second)."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "lit_tune"
RANK = {  # a unit may import only units of a strictly lower rank; equal rank = may not know each other
    "errors": 0,
    "durable": 1,
    "hub_access": 1,
    "imports": 1,
    "interrupts": 1,
    "run_lock": 3,
    "ranks": 2,
    "foreign_errors": 3,
    "supervision": 3,
    "console": 1,
    "losses": 1,
    "similarity": 1,
    "seeds": 1,
    "memory": 1,
    "metrics": 1,
    "stats": 1,
    "data": 2,
    "models": 2,
    "run_dir": 2,
    "optim": 3,
    "tasks": 4,
    "preparation": 5,
    "features": 5,
    "module": 6,
    "datamodule": 6,
    "callbacks": 6,
    "checkpointing": 6,
    "preflight": 7,
    "config": 7,
    "training": 8,
    "cli": 9,
    "commands": 10,
    "__main__": 11,
}
LIGHT = {
    "errors",
    "durable",
    "imports",
    "interrupts",
    "ranks",
    "foreign_errors",
    "run_dir",
    "losses",
    "similarity",
    "memory",
    "metrics",
    "stats",
}
"""Units that know neither transformers nor lightning."""
MAX_LINES, MAX_FUNCTION_LINES = 350, 60
BANNED_STEMS = {"utils", "util", "helpers", "helper", "common", "misc", "core", "base_utils", "manager"}
MAX_INIT_LINES = 150
"""A constructor's signature is the schema of a section: it may be long, it holds no logic."""


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            found |= {f"{node.module}.{a.name}" if node.module == "lit_tune" else str(node.module) for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


def sources() -> list[tuple[Path, ast.Module]]:
    return [(p, ast.parse(p.read_text())) for p in sorted(PACKAGE.rglob("*.py"))]


def test_units_import_only_lower_ranks():
    problems = []
    for path, tree in sources():
        here = unit(path)
        if here == "__init__":
            continue
        ours = {m.split(".")[1] for m in imported_modules(tree) if m.startswith("lit_tune.")}
        problems += [f"{path}: {here} imports {u}" for u in ours - {here, "__version__"} if RANK[u] >= RANK[here]]
    assert not problems, "\n".join(problems)


def test_numbers_know_neither_transformers_nor_lightning():
    problems = [
        f"{path}: imports {m}"
        for path, tree in sources()
        if unit(path) in LIGHT
        for m in imported_modules(tree)
        if m.split(".")[0] in {"transformers", "lightning", "datasets"}
    ]
    assert not problems, "\n".join(problems)


def test_files_and_functions_stay_small_and_named():
    problems = []
    for path, tree in sources():
        if path.stem in BANNED_STEMS:
            problems.append(f"{path}: name says nothing")
        if (lines := len(path.read_text().splitlines())) > MAX_LINES:
            problems.append(f"{path}: {lines} lines > {MAX_LINES}")
        for f in ast.walk(tree):
            if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (f.end_lineno or 0) - f.lineno + 1
                if size > (MAX_INIT_LINES if f.name == "__init__" else MAX_FUNCTION_LINES):
                    problems.append(f"{path}:{f.lineno} {f.name} has {size} lines")
    assert not problems, "\n".join(problems)


def test_nothing_loads_pickles_or_remote_code():
    banned = (
        r"weights_only=False",
        r"trust_remote_code=True",
        r"pickle\.load",
        r"yaml\.load\((?!.*_Loader\))",
        r"Unsafe",
    )
    problems = [f"{path}: {b}" for path, _ in sources() for b in banned if re.search(b, path.read_text())]
    assert not problems, "\n".join(problems)
