"""What a person reads when a config is wrong: each problem, its key, place and fix, through the real command line."""

import pytest

from lit_tune.__main__ import main
from lit_tune.config.training_arguments import OTHER_NAMES, TRAINING_ARGUMENTS

TRAIN = ["--data.train", "a.csv", "--model.model_name_or_path", "m"]


@pytest.fixture
def errors_of(capsys, tmp_path, monkeypatch):
    """Run ``lit-tune fit --print_config`` and give the problems it prints, one string each."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)

    def run(*options, exit_code=2, verb="fit"):
        capsys.readouterr()
        assert main([verb, *options, "--print_config"]) == exit_code
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Traceback" not in printed.err
        assert "Subtypes" not in printed.err
        problems = [p for p in printed.err.strip().split("\n\n") if not p.startswith("lit-tune: ")]
        for problem in problems:
            assert len(problem.splitlines()) <= 6
            assert "Fix: " in problem
        return [p.replace("\n  ", " ") for p in problems]  # a line is wrapped at the width of the terminal

    return run


@pytest.fixture
def config(tmp_path):
    """Write a config file."""

    def write(text, name="my.yaml"):
        (tmp_path / name).write_text(text)
        return name

    return write


def test_many_mistakes_in_one_file_are_reported_together_each_with_its_line(errors_of, config):
    path = config("""\
model: {model_name_or_path: m}
data:
  trian: a.csv
  train_batch_size: 16.5
  padding: long
optimizer:
  lr: abc
optimiser: {lr: 1}
lr: 3e-5
early_stopping: null
task: {class_path: SequenceClasification, init_args: {text_columns: [a]}}
trainer: {max_epochs: three, precision: bf17}
""")
    problems = errors_of("--config", path)
    heads = [p.split("\n")[0] for p in problems]
    assert heads == [
        "data.trian: no such key; did you mean data.train? (my.yaml:3)",
        "optimiser: no such key; did you mean optimizer? (my.yaml:8)",
        "lr: no such key; did you mean optimizer.lr? (my.yaml:9)",
        "early_stopping: a section with keys of its own, got null (my.yaml:10)",
        "task.class_path: there is no task SequenceClasification; did you mean SequenceClassification? "
        "there are: CausalLM, InstructionTuning, MaskedLM, MultipleChoice, QuestionAnswering, SentenceEmbedding, "
        "Seq2Seq, SequenceClassification, TokenClassification (my.yaml:11)",
        "data.train_batch_size: expected a whole number of at least 1, got 16.5 (my.yaml:4)",
        "data.padding: expected one of longest, max_length, got 'long' (my.yaml:5)",
        "optimizer.lr: expected a number above 0, got 'abc' (my.yaml:7)",
        "trainer.max_epochs: expected a whole number of at least 1 (or -1), got 'three' (my.yaml:12)",
        "trainer.precision: expected one of transformer-engine, transformer-engine-float16, 16-true, 16-mixed, "
        "bf16-true, bf16-mixed, 32-true, 64-true, 64, 32, 16, bf16, got 'bf17' (my.yaml:12)",
    ]
    assert "Fix: data.padding: longest" in problems[6]


def test_a_wrong_type_a_range_and_a_contradiction_are_reported_together(errors_of):
    problems = errors_of(*TRAIN, "--optimizer.lr", "abc", "--data.max_length", "1", "--trainer.precision", "16-mixed")
    assert [p.split(":")[0] for p in problems] == ["optimizer.lr", "data.max_length", "trainer.precision"]


def test_the_same_key_wrong_in_two_places_is_reported_for_both(errors_of, config):
    path = config("optimizer: {lr: abc}")
    problems = errors_of(*TRAIN, "--config", path, "--optimizer.lr", "xyz")
    assert ["'abc' (my.yaml:1)" in problems[0], "'xyz' (command line)" in problems[1]] == [True, True]


def test_what_is_missing_is_said_with_an_example(errors_of):
    problems = errors_of()
    assert [p.split(":")[0] for p in problems] == ["model.model_name_or_path", "data.train"]
    assert "Fix: model.model_name_or_path: bert-base-uncased" in problems[0]


def test_a_missing_train_file_is_not_reported_when_its_key_is_misspelt(errors_of):
    problems = errors_of("--model.model_name_or_path", "m", "--data.trian", "a.csv")
    assert problems == ["data.trian: no such key; did you mean data.train? (command line)\nFix: write --data.train"]


@pytest.mark.parametrize("name", [*TRAINING_ARGUMENTS, *OTHER_NAMES])
def test_a_name_of_training_arguments_leads_to_the_key_here(errors_of, config, name):
    replacement = {**TRAINING_ARGUMENTS, **OTHER_NAMES}[name]
    (problem,) = errors_of(*TRAIN, "--config", config(f"{name}: 1"))
    assert problem.startswith(f"{name}: ")
    assert f"here it is {replacement.fix}" in problem


def test_a_training_argument_in_the_right_section_is_found_too(errors_of, config):
    path = config("trainer: {fp16: true, max_grad_norm: 1.0}")
    problems = errors_of(*TRAIN, "--config", path)
    assert "here it is trainer.precision: 16-mixed" in problems[0]
    assert "Fix: write trainer.gradient_clip_val" in problems[1]


def test_a_switch_without_value_says_what_to_write(errors_of):
    assert errors_of(*TRAIN, "--data.streaming") == ["--data.streaming: a value is missing\nFix: --data.streaming true"]


def test_a_key_that_follows_another_one_names_it(errors_of):
    problems = errors_of(*TRAIN, "--trainer.default_root_dir", "x", "--data.model_name_or_path", "y")
    assert "Fix: set run_dir" in problems[0]
    assert "Fix: set model.model_name_or_path" in problems[1]


@pytest.mark.parametrize(
    ("options", "head"),
    [
        (
            ["--trainer.callbacks+=evil.X"],
            "trainer.callbacks: evil.X is not on the list of imports that a config may name (command line)",
        ),
        (
            ["--trainer.callbacks+=LearningRateMonitr"],
            "trainer.callbacks: LearningRateMonitr is not a Callback; did you mean LearningRateMonitor? (command line)",
        ),
        (
            ["--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.log_momentum=maybe"],
            "trainer.callbacks.log_momentum: log_momentum: expected a bool, got maybe (command line)",
        ),
        (
            ["--trainer.plugins=0"],
            "trainer.plugins: 0 is not a Precision or ClusterEnvironment or CheckpointIO or LayerSync",
        ),
        (
            ["--trainer.callbacks=[3]"],
            "trainer.callbacks: [3] is not a Callback (command line)",
        ),
        (
            ["--trainer.strategy.class_path=DDPStrategyy"],
            "trainer.strategy.class_path: DDPStrategyy is not a Strategy; did you mean DDPStrategy? (command line)",
        ),
        (["--optimizer.name=adamww"], "optimizer.name: 'adamww' is no class of torch.optim; did you mean adamw?"),
        (
            ["--task=my_package.MyTask"],
            "task.class_path: my_package.MyTask is not on the list of imports that a config may name (command line)",
        ),
        (
            ["--task.loss=os.system"],
            "task.init_args.loss: os.system is not on the list of imports that a config may name",
        ),
        (
            ["--task.text_colums=[a]"],
            "task.init_args.text_colums: no such key; did you mean task.init_args.text_columns?",
        ),
        (
            ["--logger=[tensorboard,wandbb]"],
            "logger: expected one of tensorboard, csv, wandb, none or a list of one of tensorboard, csv, wandb, none, "
            "got '[tensorboard,wandbb]' (command line)",
        ),
    ],
)
def test_a_wrong_name_of_a_class_is_one_line(errors_of, options, head):
    (problem,) = errors_of(*TRAIN, *options)
    assert problem.split("\n")[0].startswith(head)


def test_the_module_of_a_refused_class_is_not_imported(errors_of, tmp_path, monkeypatch):
    (tmp_path / "evil_module_for_test.py").write_text("open('ran', 'w')\nclass X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for option in ("--trainer.callbacks+=evil_module_for_test.X", "--task=evil_module_for_test.X"):
        errors_of(*TRAIN, option)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model:\n  a: [1\nb: 2", "my.yaml:3: not valid YAML"),
        ("model:\n\ta: 1", "my.yaml:2: not valid YAML: found character '\\t'"),
        ("- a\n- b", "my.yaml: expected `key: value` lines, found a list"),
        ("optimizer: {lr: 1}\ndata: {}\noptimizer: {}", "my.yaml: the key optimizer is given twice, in lines 1 and 3"),
        ("optimizer: {lr: .nan}", "my.yaml:1: nan is not a value any key takes"),
        ("a: &x [1,2,3,4,5,6,7,8,9]\n" + "".join(f"k{i}: &k{i} [{f'*k{i - 1},' * 9}]\n" for i in range(1, 7))
         .replace("*k0", "*x"), "my.yaml: more than 100000 values"),
    ],
    ids=["bracket", "tab", "list", "twice", "nan", "billion laughs"],
)  # fmt: skip
def test_a_file_that_is_not_a_config_is_said_with_its_line(errors_of, config, text, problem):
    (found,) = errors_of("--config", config(text))
    assert found.startswith(problem)


def test_a_missing_file_is_said_with_the_nearest_name(errors_of, config):
    config("a: 1", "mrpc_bert.yaml")
    assert errors_of("--config", "mrcp_bert.yaml") == [
        "--config: there is no file mrcp_bert.yaml\nFix: --config mrpc_bert.yaml"
    ]


def test_a_run_directory_given_as_config_leads_to_its_config(errors_of, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.yaml").write_text("")
    assert "Fix: --config x/config.yaml" in errors_of("--config", "x")[0]


def test_a_stray_word_is_said(errors_of):
    assert errors_of(*TRAIN, "foo")[0].startswith("command line: unexpected argument 'foo'")


def test_a_verb_option_of_another_verb_is_said(errors_of):
    assert errors_of("--overwrite", verb="validate")[0].startswith("--overwrite: belongs to lit-tune fit")
