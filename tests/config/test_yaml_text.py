"""YAML from anybody: what is a value, what is refused with its place, and how much a small text may become."""

import pytest

from lit_tune.config.yaml_text import MAX_DEPTH, check_plain, is_plain, read_yaml
from lit_tune.errors import ConfigError


def bomb(reference, levels=8):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{{reference}: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),  # YAML 1.1 has 8, and an error for 09
        ("09", 9),
        ("0x1F", 31),
        ("-3", -3),
        ("2e-5", 2e-5),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("~", None),
        ("'é漢🙂'", "é漢🙂"),
    ],
)
def test_a_value_is_what_yaml_1_2_says(text, value):
    tree, _ = read_yaml(f"x: {text}", "my.yaml")
    assert tree == {"x": value}
    assert type(tree["x"]) is type(value)


def test_anchors_and_merges_work_where_they_do_not_multiply():
    tree, lines = read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a", "my.yaml")
    assert tree == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}
    assert (lines["a"], lines["b.y"], lines["c"]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (bomb("p"), "more than 100000 values"),
        (bomb("<<"), "more than 100000 values"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: &a {<<: *a}", "nested too deeply"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested too deeply"),
        ("[" * 1500, "nested too deeply"),
        ("a: *b", "undefined alias"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor for the tag"),
        ("a: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("a: !!set {x}", "a tag makes a date, a set or bytes"),
        ("a: !!timestamp 2024-01-01", "a tag makes a date"),
        ("? !!binary aGk=\n: 1", "a tag makes a date"),
        ("a: !!int x", "invalid literal for int"),
        ("a: !!timestamp x", "has no attribute"),
        ("? [x]\n: 1", "unhashable key"),
        ("a: " + "9" * 50, "a number of that many digits"),
        ("a: 1\na: 2", "the key a is given twice, in lines 1 and 2"),
        ("a: {b: {c: 1, c: 2}}", "the key a.b.c is given twice"),
        ("a: [{b: 1, b: 2}]", "the key a.[].b is given twice"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \x07", "special characters are not allowed"),
    ],
)
def test_what_a_config_may_not_hold_is_refused_at_once(text, what):
    with pytest.raises(ConfigError, match=r"my\.yaml") as caught:
        read_yaml(text, "my.yaml")
    assert what in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (float("nan"), "nan is not a value any key takes"),
        ([1, [float("-inf")]], "-inf is not"),
        ({"a": float("inf")}, "inf is not"),
        ("a\0b", "a NUL character"),
        ({"a": ["\ud800"]}, "half of a surrogate pair"),
        ({"a\0": 1}, "a NUL character"),
        (10**40, "a number of that many digits"),
        ("{a: &a [x], b: *a}", "YAML aliases"),
    ],
)
def test_a_value_that_cannot_be_used_or_written_is_refused(value, what):
    with pytest.raises(ConfigError, match=r"some\.key") as caught:
        check_plain(value, "some.key")
    assert what in str(caught.value)


@pytest.mark.parametrize("text", ["R&D *and* AT&T", "data/*.csv", "a & b * c", "&amp;", "x *y &z"])
def test_texts_with_stars_and_ampersands_are_texts(text):
    assert check_plain(text, "wandb.notes") == text


def test_plain_is_what_yaml_calls_core():
    assert is_plain({"a": [1, 2.5, True, None, "x", {"b": []}]})
    assert not is_plain({"a": [object()]})
