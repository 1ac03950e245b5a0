"""Norm and clipping equal torch's; a norm of 16-bit gradients neither overflows nor loses digits."""

import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from lit_tune.errors import ConfigError
from lit_tune.optim.clipping import gradient_norm, scale_and_clip


def gradients(dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in ((3, 4), (5,), ())]


def as_parameters(tensors):
    parameters = [torch.nn.Parameter(torch.zeros_like(t)) for t in tensors]
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.grad = tensor.clone()
    return parameters


@pytest.mark.parametrize(
    ("clip", "algorithm"), [(1.0, "norm"), (1.0, None), (100.0, "norm"), (0.3, "value"), (None, None)]
)
@pytest.mark.parametrize("factor", [1.0, 0.125])
def test_clipping_equals_torchs_after_scaling(clip, algorithm, factor):
    ours, theirs = gradients(), as_parameters([g * factor for g in gradients()])
    norm = float(gradient_norm(ours)) * factor
    if algorithm == "value":
        clip_grad_value_(theirs, clip)
    else:
        expected = clip_grad_norm_(theirs, clip or math.inf)
        assert norm == pytest.approx(float(expected), rel=1e-12)
    scale_and_clip(ours, factor, norm, clip, algorithm)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_of_16_bit_gradients_is_that_of_their_values(dtype):
    small = gradients(dtype, scale=2000.0)
    exact = float(gradient_norm([g.double() for g in small]))
    assert float(gradient_norm(small)) == pytest.approx(exact, rel=1e-6)
    large = [torch.full((64,), 60000.0).to(dtype)]
    assert float(gradient_norm(large)) == pytest.approx(
        8 * float(large[0][0]), rel=1e-6
    )  # 480,000: above fp16's 65,504


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_entry_makes_the_norm_bad(bad):
    found = gradients(torch.float32)
    found[1][2] = bad
    assert not math.isfinite(float(gradient_norm(found)))


def test_nothing_to_train_is_told():
    with pytest.raises(ConfigError, match="no parameter is trained"):
        gradient_norm([])
