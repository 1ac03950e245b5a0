"""What is trained when: stages of a plan, their groups and rates, and errors."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from lit_tune.errors import ConfigError, LitTuneError
from lit_tune.models.freezing import freeze
from lit_tune.models.unfreeze_settings import unfreeze_settings
from lit_tune.models.unfreezing import plan_stages
from lit_tune.optim.optimizers import OptimizerSettings, build_optimizer
from lit_tune.optim.param_groups import build_param_groups
from lit_tune.optim.schedules import ScheduleSettings, build_schedule
from lit_tune.preflight.step_rules import Plan, unfreezing_findings


@pytest.fixture
def bert():
    """Three layers, the whole backbone frozen."""
    config = BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=60)
    model = AutoModelForSequenceClassification.from_config(config)
    freeze(model, ["backbone"])
    return model


def plan(model, value):
    return plan_stages(model, unfreeze_settings(value))


def parts(stage):
    """Layers, or what a parameter belongs to: ``2``, ``embeddings``, ``pooler``."""
    return {n.split(".layer.")[1].split(".")[0] if ".layer." in n else n.split(".")[1] for n in stage.names}


def test_gradual_is_one_layer_per_epoch_from_the_top_and_the_embeddings_last(bert):
    stages = plan(bert, "gradual")
    assert [(s.when, s.label) for s in stages] == [
        ("epoch 1", "layer 3"),
        ("epoch 2", "layer 2"),
        ("epoch 3", "layer 1"),
        ("epoch 4", "embeddings"),
    ]
    assert parts(stages[0]) == {"2", "pooler"}  # a pooler is pretrained with the last layer
    assert sorted(n for s in stages for n in s.names) == sorted(n for n, _ in bert.bert.named_parameters(prefix="bert"))


def test_gradual_by_steps_with_a_rate(bert):
    stages = plan(bert, {"every_steps": 50, "lr": 1e-4, "warmup_steps": 5})
    assert [s.first_step(None) for s in stages] == [50, 100, 150, 200]
    assert {(s.lr, s.warmup_steps) for s in stages} == {(1e-4, 5)}


def test_stages_take_what_those_before_them_have_left(bert):
    first, second, rest = plan(
        bert,
        [
            {"at_epoch": 1, "layers": "top 2", "lr": 1e-5},
            {"at_step": 500, "patterns": [r"embeddings", r"layer\.2"], "lr": 5e-6},
            {"at_epoch": 3, "layers": "all"},
        ],
    )
    assert (parts(first), first.label) == ({"1", "2", "pooler"}, "layers 2 to 3")
    assert (parts(second), second.when) == ({"embeddings"}, "step 500")
    assert parts(rest) == {"0"}
    assert (first.first_step(10), second.first_step(10), first.first_step(None)) == (10, 500, None)


def test_layers_below_a_number_are_frozen():
    config = BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=60)
    model = AutoModelForSequenceClassification.from_config(config)
    freeze(model, ["layers below 3"])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if "embeddings" in n or "layer.0" in n or "layer.1" in n}
    assert [s.label for s in plan(model, "gradual")] == ["layer 2", "layer 1", "embeddings"]


@pytest.mark.parametrize("text", ["layers below 0", "layers below 4", "layers below three"])
def test_layers_that_are_not_there_are_an_error_with_those_that_are(bert, text):
    with pytest.raises(ConfigError, match=r"the model has layers 1 to 3, not .*\nFix: e\.g\. layers below 3"):
        freeze(bert, [text])


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            [{"at_epoch": 1, "patterns": "encodr"}],
            r"unfreeze\[0\].patterns: 'encodr' matches none.*did you mean encoder",
        ),
        ([{"at_epoch": 1, "layers": "top 7"}], r"unfreeze\[0\].layers: the model has layers 1 to 3, not 7"),
        ([{"at_epoch": 1, "patterns": "classifier"}], r"unfreeze\[0\]: classifier has nothing that is still frozen"),
        (
            [{"at_epoch": 2, "layers": "all"}, {"at_epoch": 1, "layers": "top 1"}],
            r"unfreeze\[1\]: layers: top 1 has nothing that is still frozen then\nFix: .*order of time",
        ),
    ],
)
def test_a_stage_without_anything_to_train_is_an_error(bert, stages, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        plan(bert, stages)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("gradualy", "expected gradual, a mapping or a list"),
        ([{"at_epoch": 1}], r"unfreeze\[0\]: lacks layers or patterns"),
        ([{"layers": "all"}], r"unfreeze\[0\]: lacks at_epoch or at_step"),
        ([{"layers": "all", "at_epoch": 1, "at_step": 3}], "exclude each other"),
        ([{"layers": "all", "at_epoch": 0}], r"unfreeze\[0\].at_epoch: expected a whole number of at least 1, got 0"),
        ([{"layers": "top", "at_epoch": 1}], r"unfreeze\[0\].layers: expected all, or top and a number"),
        ([{"layers": "all", "at_step": 1, "lr": 0}], r"unfreeze\[0\].lr: expected a number above 0"),
        ([{"layers": "all", "at_stp": 1}], r"(?s)unfreeze\[0\].at_stp: no such key.*Fix: write at_step"),
        ({"every_epochs": 1, "every_steps": 1}, "exclude each other"),
        ({"warmup_steps": -1}, "unfreeze.warmup_steps: expected a whole number of at least 0"),
        (["all"], r"unfreeze\[0\]: expected a mapping"),
    ],
)
def test_wrong_settings_are_named_with_a_fix(value, said):
    with pytest.raises(LitTuneError, match=said) as caught:
        unfreeze_settings(value)
    assert "Fix: " in str(caught.value)
    assert caught.value.exit_code == 2


def test_groups_have_rates_of_their_own_from_which_the_layer_decay_goes_down(bert):
    stages = plan(bert, [{"at_epoch": 1, "layers": "top 2", "lr": 1e-4}, {"at_epoch": 2, "layers": "all"}])
    groups = build_param_groups(bert, 1e-3, 0.1, head_lr=5e-3, layer_lr_decay=0.5, stages=stages)
    rates = {g["name"]: g["lr"] for g in groups}
    assert rates["head, decay"] == 5e-3
    assert rates["layer 3 from epoch 1, decay"] == 1e-4
    assert rates["layer 2 from epoch 1, no decay"] == 0.5e-4
    assert rates["layer 1 from epoch 2, decay"] == 1e-3 * 0.5**3  # as without freezing
    assert rates["embeddings from epoch 2, decay"] == 1e-3 * 0.5**4
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in bert.parameters())
    assert {g["name"]: g["weight_decay"] for g in groups}["layer 3 from epoch 1, no decay"] == 0.0


def test_a_group_warms_up_from_its_own_beginning_times_the_schedule(bert):
    stages = plan(bert, [{"at_epoch": 2, "layers": "all", "lr": 1.0, "warmup_steps": 2}])
    optimizer = build_optimizer(OptimizerSettings(lr=1.0), bert, False, stages, steps_per_epoch=3)
    scheduler = build_schedule(ScheduleSettings("linear", warmup=0), optimizer, 10)
    rates = []
    for _ in range(10):
        rates.append(next(g["lr"] for g in optimizer.param_groups if "ramp" in g))
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.0] * 7 + [0.3 / 2, 0.2, 0.1])


def test_a_warm_up_is_refused_where_its_beginning_is_not_known(bert):
    stages = plan(bert, [{"at_epoch": 2, "layers": "all", "warmup_steps": 2}])
    with pytest.raises(ConfigError, match="nobody knows where the warm-up begins"):
        build_optimizer(OptimizerSettings(), bert, False, stages, steps_per_epoch=None)
    optimizer = build_optimizer(OptimizerSettings(), bert, False, stages, steps_per_epoch=2)
    with pytest.raises(ConfigError, match=r"warmup_steps: goes with linear.*not with StepLR"):
        build_schedule(ScheduleSettings("StepLR", warmup=0, init_args={"step_size": 1}), optimizer, 10)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "NAdam", "Adagrad"])
def test_an_optimizer_leaves_alone_what_has_no_gradient(bert, name):
    """No state, no decay, no momentum: why all groups can be there from the start."""
    stages = plan(bert, "gradual")
    optimizer = build_optimizer(OptimizerSettings(name, lr=0.1, weight_decay=0.5), bert, True, stages, 1)
    before = {n: p.detach().clone() for n, p in bert.named_parameters()}
    frozen = list(bert.bert.parameters())
    for _ in range(2):
        bert(input_ids=torch.arange(6)[None], labels=torch.tensor([1])).loss.backward()
        optimizer.step()
    assert all(torch.equal(before[n], p) for n, p in bert.named_parameters() if "classifier" not in n)
    assert not torch.equal(before["classifier.weight"], bert.classifier.weight)
    if name != "Adagrad":  # makes its state at once, of zeros
        assert not any(p in optimizer.state for p in frozen)


def test_stages_out_of_the_order_of_time_are_an_error_and_late_ones_a_warning(bert):
    stages = plan(
        bert,
        [
            {"at_epoch": 2, "layers": "top 1"},
            {"at_step": 15, "layers": "top 2"},
            {"at_epoch": 5, "layers": "all"},
        ],
    )
    late, order = unfreezing_findings(stages, Plan(100, 1, 10, 40, 10))
    assert (late.severity, order.severity) == ("warning", "error")
    assert "embeddings, layer 1 stay frozen: the run ends before epoch 5, after 40 steps" in str(late.problem)
    assert "model.unfreeze[1]: step 15 comes before the stage above it, which is due after 20 steps" in str(
        order.problem
    )
    assert list(unfreezing_findings(stages, Plan(None, 1, None, 100, None))) == []  # a stream: no epoch has a length
