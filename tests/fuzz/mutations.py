"""Configs as nobody should write them: one change to a shipped config, drawn from a seed."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2] / "configs"
OVERLAYS = sorted((ROOT / "overlays").glob("*.yaml"))
CONFIGS = sorted(p for p in ROOT.rglob("*.yaml") if p not in OVERLAYS)
BASE = {"data": {"train": "a.csv"}, "model": {"model_name_or_path": "m"}}
"""What an overlay is laid over."""

BAIT = "fuzz_bait"
"""A module on the path that no config may import."""

Path_ = tuple[str, ...]
Tree = dict[str, Any]


def bomb() -> str:
    """Aliases in a text that a second YAML reader would follow."""
    parts = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    parts += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "{" + ", ".join(parts) + "}"


CLASS_PATHS = [
    "os.system",
    "builtins.eval",
    "importlib.import_module",
    "subprocess.Popen",
    "torch.hub.load",
    "torch.load",
    "transformers.pipeline",
    "jsonargparse.set_parsing_settings",
    "lit_tune.imports.allow_import",
    "lit_tune.callbacks.hf_export.export",
    "lightning.pytorch.callbacks.LambdaCallback",
    "lightning.pytorch.callbacks.model_checkpoint.os",
    "lightning.pytorch.callbacks",
    "torch.optim.lr_scheduler.partial",
    f"{BAIT}.Loss",
    BAIT,
    "Timer",
    "SGD",
    "a..b",
    ".a",
    "torch.optim.",
    "torch.nn.CrossEntropyLoss",
    "torch.optim.lr_scheduler.StepLR",
    "lightning.pytorch.loggers.CSVLogger",
    "http://127.0.0.1:9/x.yaml",
]

TEXTS = [
    "",
    " ",
    "abc",
    "null",
    "true",
    "nan",
    "-inf",
    "1e400",
    "9" * 5000,
    "2024-01-01",
    "é漢字🙂",
    "\u202e",
    "a" * 3000,
    "../../../etc/passwd",
    "/etc/passwd",
    "~root",
    "-",
    "--overwrite",
    "@/etc/passwd",
    "${HOME}",
    "{val/loss}",
    "{a",
    "[[[[",
    "[" * 3000,
    "{a: " * 500,
    "[1, 2",
    '{"class_path": "os.system"}',
    "!!python/object/apply:os.system [id]",
    "a\nb: c",
    "%s%n{}",
    "hf_" + "x" * 30,
    bomb(),
]

NUMBERS = [0, 1, -1, 2, 3.5, -0.5, 1e-300, 1e308, 10**12, 10**40, -(10**40), float("nan"), float("inf"), True, False]

SHAPES: list[Any] = [
    None,
    [],
    {},
    [None],
    [[]],
    [{}],
    [1, "a", None],
    ["a", "a"],
    {"a": 1},
    {"a": None},
    {"": ""},
    {"class_path": None},
    {"class_path": 3},
    {"class_path": "", "init_args": []},
    {"class_path": "Timer", "init_args": {"duration": {}}},
    {"class_path": "Timer", "init_args": "x"},
    {"class_path": "Timer", "init_args": {"nope": 1}},
    {"class_path": "SGD", "dict_kwargs": {"lr": "x"}},
    {"init_args": {"a": 1}},
    {"__path__": "/etc/passwd"},
    {"class_path": f"{BAIT}.Loss", "init_args": {"x": {"class_path": "os.system", "init_args": {"command": "id"}}}},
]


def values() -> list[Any]:
    """All that takes the place of a value."""
    classes = [{"class_path": c, "init_args": {}} for c in CLASS_PATHS]
    return [*TEXTS, *NUMBERS, *SHAPES, *CLASS_PATHS, *classes, [classes[0]], _nested(30), _nested(200)]


def _nested(depth: int) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = [tree]
    return tree


def leaves(tree: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every key of a config, sections included."""
    for name, value in tree.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


def put(tree: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    """A copy of the tree with another value at a path."""
    name, *rest = path
    inner = tree.get(name)
    if rest:
        value = put(inner if isinstance(inner, dict) else {}, tuple(rest), value)
    return {**tree, name: value}


def drop(tree: dict[str, Any], path: Path_) -> dict[str, Any]:
    """A copy of the tree without a key."""
    name, *rest = path
    if rest:
        return {**tree, name: drop(tree[name], tuple(rest))}
    return {k: v for k, v in tree.items() if k != name}


def at(tree: Any, path: Path_) -> Any:
    """The value at a path."""
    for name in path:
        tree = tree[name]
    return tree


def text_of(tree: dict[str, Any]) -> str:
    """As YAML."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000)


def change_value(rng: random.Random, tree: Tree, path: Path_) -> Tree:
    """Another value; sometimes the old one in another shape."""
    old = at(tree, path)
    shapes = [[old], [old, old], {"a": old}, str(old), f" {old} ", f"{old}x", [[old]]]
    return put(tree, path, rng.choice([*values(), *shapes]))


def change_key(rng: random.Random, tree: Tree, path: Path_) -> Tree:
    """Another name for a key, the key in another place, or not at all."""
    name, value = path[-1], at(tree, path)
    without = drop(tree, path)
    place = rng.randrange(len(name))
    names = [
        name[:place] + name[place + 1 :],
        name[:place] + name[place:][:1] + name[place:],
        name.upper(),
        f"{name}.{name}",
        f"{name}.class_path",
        f"{name}.init_args.x",
        f"{name}+",
        f".{name}",
        f"{name}.",
        "é漢",
        "",
        "class_path",
        "__class__",
        "config",
        "print_config",
        "hf_" + "k" * 30,
    ]
    which = rng.randrange(6)
    if which == 0:
        return without
    if which == 1:
        return {**without, name: value}
    if which == 2:
        return put(tree, (*path, rng.choice(names)), value)
    return put(without, (*path[:-1], rng.choice(names)), value)


def change_text(rng: random.Random, tree: Tree, path: Path_) -> str:
    """A file that is cut, garbled, tagged or full of anchors."""
    text = text_of(tree)
    place = rng.randrange(len(text))
    key = path[-1]
    edits = [
        text[:place],
        text[:place] + rng.choice("\t\x07{}[]&*!|>'\"%@`:#-?,\n\u2028\ufeff🙂") + text[place:],
        text[:place] + text[place + rng.randrange(1, 9) :],
        text.replace(f"{key}:", f"{key}: !!python/object/apply:os.system", 1),
        text.replace(
            f"{key}:", f"{key}: !!{rng.choice(['set', 'binary', 'timestamp', 'omap', 'int', 'null', 'x'])}", 1
        ),
        text.replace(f"{key}:", f"{key}: &a", 1) + "\nextra: *a\n",
        text.replace(f"{key}:", f"{key}: &a", 1) + "\nseed_everything: *a\n",
        text.replace(f"{key}:", f"{key}: *a", 1),
        f"x: &a {{a: &b [*b]}}\n{text}",
        f"{text}\n<<: *a\n",
        f"x: &a {{lr: 1}}\n{text}\noptimizer: {{<<: [*a, *a]}}\n",
        f"{text}\n---\n{text}",
        f"{text}\n{text}",
        f"- {text}",
        text.replace("\n", "\r"),
        text.replace(": ", ":\t"),
        "[" * rng.randrange(1, 2000),
        "a: " * rng.randrange(1, 500),
        "? " * rng.randrange(1, 500),
    ]
    return rng.choice(edits)


def places(extra_keys: list[str]) -> list[tuple[str, Tree, Path_]]:
    """Each key of each shipped config, and each other key on a config that lacks it: name, config, path."""
    found: list[tuple[str, Tree, Path_]] = []
    for file in [*CONFIGS, *OVERLAYS]:
        tree = yaml.safe_load(file.read_text("utf-8"))
        data = {**(BASE["data"] if file in OVERLAYS else {}), **tree.get("data", {})}
        whole = {**(BASE if file in OVERLAYS else {}), **tree, "data": data}
        found += [(file.stem, whole, path) for path in leaves(tree)]
    for key in extra_keys:
        path = tuple(key.split("."))
        found.append(("base", put(BASE, path, None), path))
    return found


def cases(count: int, seed: int, extra_keys: list[str], in_pairs: bool = False) -> Iterator[tuple[str, str]]:
    """Name and text of configs with ``count`` changes; every key of every shipped one is changed before any twice.

    Args:
        count: How many changes.
        seed: Of all choices.
        extra_keys: Dotted keys that no shipped config has, to be set as well.
        in_pairs: Two changes to each config, in different sections, where it has two.
    """
    rng = random.Random(seed)
    number = 0
    while number < count:
        waiting: dict[str, tuple[str, Tree, Path_]] = {}
        for name, tree, path in rng.sample(found := places(extra_keys), len(found)):
            if number >= count:
                break
            how = rng.choices([change_value, change_key, change_text], weights=[7, 2, 2])[0]
            shown = f"{number}: {how.__name__} {name} {'.'.join(path)}"
            number += 1
            if how is change_text:
                yield shown, change_text(rng, tree, path)
                continue
            first, changed, done = waiting.pop(name, ("", tree, ()))
            if first and (done[0] == path[0] or path[0] not in changed):
                yield first, text_of(changed)
                first, changed = "", tree
            after = how(rng, at_top(changed, tree, path), path)
            if in_pairs and not first:
                waiting[name] = (shown, after, path)
            else:
                yield f"{first} and {shown}" if first else shown, text_of(after)
        for first, changed, _ in waiting.values():
            yield first, text_of(changed)


def at_top(changed: Tree, tree: Tree, path: Path_) -> Tree:
    """The changed tree with the section that is changed next as it was."""
    return {**changed, path[0]: tree[path[0]]}
