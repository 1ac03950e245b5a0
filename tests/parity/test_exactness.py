"""The rule: loss and gradient of a step do not depend on how its rows are cut into micro-batches and ranks."""

import pytest
import torch
from parity.runs import fit, relative

CUTS = [(2, 8), (4, 4), (16, 1)]
CASES = {
    "plain": ("single", {}),
    "class weights": ("single", {"class_weights": [0.2, 1.0, 5.0]}),
    "balanced": ("single", {"class_weights": "balanced"}),
    "smoothed and weighted": ("single", {"label_smoothing": 0.1, "class_weights": [0.2, 1.0, 5.0]}),
    "focal": ("single", {"focal_gamma": 2.0}),
    "multi-label": ("multi", {"pos_weight": "balanced"}),
    "regression": ("regression", {}),
}


def compare(reference, other, tolerance):
    assert len(reference.losses) == len(other.losses) == 6  # 2 epochs x (16 + 16 + 1 rows)
    for a, b in zip(reference.gradients, other.gradients, strict=True):
        assert relative(b, a) < tolerance
    assert other.losses == pytest.approx(reference.losses, rel=tolerance)
    assert other.norms == pytest.approx(reference.norms, rel=tolerance)
    for name, weight in reference.weights.items():
        assert torch.allclose(weight, other.weights[name], rtol=0, atol=100 * tolerance), name


LIKE_ANOTHER = {"balanced", "smoothed and weighted"}
"""Weights that are found otherwise, and two settings together: in make test-slow."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in LIKE_ANOTHER else case for case in CASES]
)
def test_any_cut_gives_the_same_gradient_in_float64(case, problems, tiny_model_dir, tmp_path):
    problem, task = CASES[case]
    data = {"train": str(problems[problem])}
    reference = fit(tiny_model_dir, data, batch=16, task=task, precision="64-true")
    for batch, accumulate in [(1, 16), (2, 8), (4, 4)]:
        other = fit(tiny_model_dir, data, batch=batch, accumulate=accumulate, task=task, precision="64-true")
        compare(reference, other, 1e-12)


@pytest.mark.ddp
@pytest.mark.parametrize(
    "case", ["class weights", *(pytest.param(c, marks=pytest.mark.slow) for c in ("multi-label", "regression"))]
)
def test_two_ranks_give_the_same_gradient(case, problems, tiny_model_dir, tmp_path):
    problem, task = CASES[case]
    data = {"train": str(problems[problem])}
    reference = fit(tiny_model_dir, data, batch=16, task=task, precision="64-true")
    for batch, accumulate in [(8, 1), (2, 4)]:
        other = fit(
            tiny_model_dir,
            data,
            batch=batch,
            accumulate=accumulate,
            ranks=2,
            task=task,
            scratch=tmp_path,
            precision="64-true",
        )
        compare(reference, other, 1e-12)
        rows = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True)["rows"] for r in range(2)]
        assert sorted(rows[0] + rows[1]) == sorted([*range(33)] * 2)


def test_float32_agrees_within_1e_5(problems, tiny_model_dir):
    data = {"train": str(problems["single"])}
    reference = fit(tiny_model_dir, data, batch=16, max_epochs=1, module={"optimizer": {"lr": 1e-4}})
    for batch, accumulate in CUTS:
        other = fit(
            tiny_model_dir, data, batch=batch, accumulate=accumulate, max_epochs=1, module={"optimizer": {"lr": 1e-4}}
        )
        assert max(relative(b, a) for a, b in zip(reference.gradients, other.gradients, strict=True)) < 1e-5


def test_clipping_by_value_sees_the_exact_gradient(problems, tiny_model_dir):
    data = {"train": str(problems["single"])}
    options = {"precision": "64-true", "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    reference = fit(tiny_model_dir, data, batch=16, **options)
    other = fit(tiny_model_dir, data, batch=2, accumulate=8, **options)
    compare(reference, other, 1e-12)
    assert max(float(g.abs().max()) for g in reference.gradients) == pytest.approx(0.01)


def test_the_norm_of_the_gradient_is_what_torch_would_clip(problems, tiny_model_dir):
    data = {"train": str(problems["single"])}
    free = fit(tiny_model_dir, data, gradient_clip_val=0, precision="64-true", max_steps=1)
    clipped = fit(tiny_model_dir, data, gradient_clip_val=0.5, precision="64-true", max_steps=1)
    assert free.norms == pytest.approx([float(free.gradients[0].norm())], rel=1e-12)
    assert clipped.norms == pytest.approx(free.norms, rel=1e-12)
    assert float(clipped.gradients[0].norm()) == pytest.approx(0.5, rel=1e-5)


def test_the_same_seed_twice_is_bit_equal_and_another_seed_is_not(problems, tiny_model_dir):
    data = {"train": str(problems["single"])}
    dropout = {"config_overrides": {}, "optimizer": {"lr": 1e-2}}
    runs = []
    for noise, seed in ((1, 1), (2, 1), (3, 2)):
        torch.manual_seed(noise)  # what the process did before does not matter
        runs.append(fit(tiny_model_dir, data | {"default_seed": seed}, batch=4, accumulate=4, module=dropout))
    same, again, other = runs
    assert all(torch.equal(w, again.weights[n]) for n, w in same.weights.items())
    assert same.losses == again.losses
    assert same.losses != other.losses


def test_dropout_is_on_while_training_and_off_while_evaluating(problems, tiny_model_dir):
    data = {"train": str(problems["single"]), "val": str(problems["single"])}
    flags: list[tuple[bool, bool]] = []
    from lit_tune.module import FineTuneModule

    original_train, original_eval = FineTuneModule.training_step, FineTuneModule.evaluate_batch

    def spy_train(self, batch, batch_idx):
        flags.append((True, self.model.bert.encoder.layer[0].attention.self.dropout.training))
        return original_train(self, batch, batch_idx)

    def spy_eval(self, stage, batch):
        flags.append((False, self.model.bert.encoder.layer[0].attention.self.dropout.training))
        return original_eval(self, stage, batch)

    FineTuneModule.training_step, FineTuneModule.evaluate_batch = spy_train, spy_eval
    try:
        fit(tiny_model_dir, data, batch=16, max_epochs=2, module={"config_overrides": {}})
    finally:
        FineTuneModule.training_step, FineTuneModule.evaluate_batch = original_train, original_eval
    assert {f for f in flags if f[0]} == {(True, True)}
    assert {f for f in flags if not f[0]} == {(False, False)}
