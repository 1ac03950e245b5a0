"""Logits of a language model are computed where they are needed, and its loss and gradients stay what they are."""

import logging

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from lit_tune.models import linear_loss
from lit_tune.models.adapters import without_remarks
from lit_tune.models.linear_loss import is_plain
from lit_tune.models.output_layer import OutputLayer, states_and_head
from lit_tune.tasks import token_scores
from lit_tune.tasks.token_scores import TokenScores, score_tokens

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OF_GPT = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "eos_token_id": 2}
OF_BART = {"vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
KINDS = {
    "llama": ("llama", SIZES),
    "llama tied": ("llama", {**SIZES, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", OF_GPT),
    "gptj": ("gptj", {**OF_GPT, "rotary_dim": 4}),  # its output layer has a bias
    "gpt_neox": ("gpt_neox", {**SIZES, "rotary_pct": 1.0}),
    "gemma2": ("gemma2", {**SIZES, "final_logit_softcapping": 0.5}),
    "gemma2 without caps": ("gemma2", {**SIZES, "final_logit_softcapping": None, "attn_logit_softcapping": None}),
    "cohere": ("cohere", {**SIZES, "logit_scale": 0.0625}),
    "granite": ("granite", {**SIZES, "logits_scaling": 8.0}),
    "t5": ("t5", {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}),
    "bart": ("bart", {**OF_BART, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}),
}
CHANGED = ("gemma2", "cohere", "granite")


def model_of(name: str, dtype: torch.dtype = torch.float64):
    kind, sizes = KINDS[name]
    torch.manual_seed(0)
    cls = AutoModelForSeq2SeqLM if kind in ("t5", "bart") else AutoModelForCausalLM
    model = cls.from_config(CONFIG_MAPPING[kind](**sizes)).to(dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # logits large enough for a cap to be seen
            parameter.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def batch_of(model, rows: int = 3, tokens: int = 9, share: float = 0.5):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (rows, tokens), generator=generator)
    labels = torch.randint(3, 60, (rows, tokens), generator=generator)
    labels[torch.rand(rows, tokens, generator=generator) > share] = -100
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if model.config.is_encoder_decoder:
        found["decoder_input_ids"] = ids.flip(0)
    return {**found, "example_ids": list(range(rows)), "is_filler": False}


def gradients(model, loss: torch.Tensor) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return float(loss.detach()), torch.cat([p.double().flatten() for p in parts])


def plain(model, batch, smoothing: float = 0.0) -> tuple[float, torch.Tensor]:
    """By transformers and torch alone."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids") if name in batch}
    logits = model(**inputs).logits[:, -batch["labels"].shape[1] :]
    flat = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)), batch["labels"].flatten()
    return gradients(model, F.cross_entropy(*flat, label_smoothing=smoothing, reduction="sum"))


def same(found, expected, tolerance: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert float((found[1] - expected[1]).norm() / expected[1].norm()) < tolerance


@pytest.fixture
def chunks(monkeypatch):
    """Four targets or so at a time."""
    monkeypatch.setattr(token_scores, "SMALLEST_CHUNK", 1)
    monkeypatch.setattr(token_scores, "MOST_CHUNKS", 4)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradients_are_those_of_all_logits(name, dtype, tolerance, smoothing):
    model = model_of(name, dtype)
    batch = batch_of(model)
    if name in ("gemma2", "gemma2 without caps", "llama", "llama tied") and dtype == torch.float64:
        tolerance = 1e-6 if "gemma2" in name else tolerance  # softmax in float32
    scores = score_tokens(model, batch, smoothing)
    assert (scores.head is None) == (name in CHANGED)
    same(gradients(model, scores.parts[0]), plain(model, batch, smoothing), tolerance)
    assert int(scores.parts[1]) == int((batch["labels"] >= 0).sum())


ADAPTERS = {
    "on the head, too": {"target_modules": ["q_proj", "lm_head"]},
    "below a head that is frozen": {"target_modules": ["q_proj"]},
    "with the head trained": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "with rows of tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]},
}


def adapted(model, settings: peft.PeftConfig):
    with without_remarks():
        return peft.get_peft_model(model, settings).double().eval()


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(
    ("how", "base"),
    [*((how, "llama") for how in ADAPTERS), *((how, "llama tied") for how in (*ADAPTERS,)[1::2])],
)
def test_adapters_are_asked_as_the_model_asks_them(how, base):
    settings = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **ADAPTERS[how])
    model = adapted(model_of(base), settings)
    batch = batch_of(model)
    scores = score_tokens(model, batch)
    assert scores.head is not None
    same(gradients(model, scores.parts[0]), plain(model, batch), 1e-12)


@pytest.mark.usefixtures("chunks")
def test_virtual_tokens_before_a_row_predict_nothing():
    model = adapted(model_of("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    batch = batch_of(model)
    same(gradients(model, score_tokens(model, batch).parts[0]), plain(model, batch), 1e-12)


@pytest.mark.usefixtures("chunks")
def test_dropout_in_an_adapter_of_the_head_is_drawn_the_same_in_both_passes():
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, lora_dropout=0.5, target_modules=["lm_head"]
    )
    model = adapted(model_of("llama"), settings).train()
    weight = next(p for n, p in model.named_parameters() if "lm_head" in n and "lora_B" in n)
    batch, losses, step = batch_of(model), [], 1e-6
    for change in (0.0, step, -step):
        with torch.no_grad():
            weight[7, 3] += change
        torch.manual_seed(5)
        losses.append(score_tokens(model, batch).parts[0])
        with torch.no_grad():
            weight[7, 3] -= change
    losses[0].backward()
    assert float(weight.grad[7, 3]) == pytest.approx(float((losses[1] - losses[2]).detach()) / (2 * step), rel=1e-5)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(("dtype", "is_at_once"), [(torch.bfloat16, True), (torch.float16, False)])
def test_mixed_precision_has_the_gradients_of_mixed_precision(dtype, is_at_once):
    model = model_of("llama", torch.float32)
    batch = batch_of(model)
    with torch.autocast("cpu", dtype):
        assert is_plain(model.lm_head) == is_at_once
        found = gradients(model, score_tokens(model, batch).parts[0] / 64)
        rounded = plain(model, batch)
    exact = plain(model, batch)
    assert found[0] * 64 == pytest.approx(exact[0], rel=2e-2)
    distances = [float((g - exact[1]).norm() / exact[1].norm()) for g in (found[1] * 64, rounded[1])]
    assert distances[0] < 1.5 * distances[1] < 0.2, "no further from the truth than all logits at once"


def test_the_way_to_the_loss_is_the_expected_one(monkeypatch):
    """Else equal numbers would tell nothing of chunks."""
    sizes = []
    add_chunk = linear_loss._add_chunk
    monkeypatch.setattr(linear_loss, "_add_chunk", lambda *given: (sizes.append(len(given[1])), add_chunk(*given))[1])
    monkeypatch.setattr(token_scores, "SMALLEST_CHUNK", 60 * 5)
    batch = batch_of(model_of("llama"), share=1.0)
    score_tokens(model_of("llama"), batch).parts[0].backward()
    assert sizes == [5] * 5 + [2]
    monkeypatch.setattr(token_scores, "MOST_CHUNKS", 2)
    score_tokens(model_of("llama"), batch).parts[0].backward()
    assert sizes[6:] == [14, 13]


def test_what_is_no_plain_linear_layer_is_called():
    layer = nn.Linear(4, 3)
    assert is_plain(layer)
    assert not is_plain(layer.half())
    assert not is_plain(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    hooked, changed = nn.Linear(4, 3), nn.Linear(4, 3)
    hooked.register_forward_hook(lambda module, given, output: output * 2)
    changed.forward = lambda states: states
    assert not is_plain(hooked)
    assert not is_plain(changed)
    assert not is_plain(nn.Sequential(nn.Linear(4, 3)))


@pytest.mark.usefixtures("chunks")
def test_logits_that_are_imitated_are_those_of_the_loss():
    model = model_of("llama")
    batch = batch_of(model)
    scores, wanted = score_tokens(model, batch), batch["labels"] >= 0
    logits = scores.target_logits
    assert torch.allclose(logits, model(input_ids=batch["input_ids"]).logits[wanted], rtol=0, atol=1e-12)
    calls = []
    model.lm_head.register_forward_hook(lambda *given: calls.append(1))
    same(gradients(model, scores.parts[0]), plain(model, batch), 1e-12)
    assert len(calls) == 1, "only by the reference"


def test_a_batch_that_predicts_nothing_has_a_gradient_of_nothing():
    for name in ("llama", "gemma2"):
        model = model_of(name)
        loss, gradient = gradients(model, score_tokens(model, batch_of(model, share=0.0)).parts[0])
        assert (loss, float(gradient.norm())) == (0.0, 0.0)


@pytest.mark.usefixtures("chunks")
def test_evaluation_has_the_same_numbers():
    model = model_of("llama")
    batch = batch_of(model)
    trained = score_tokens(model, batch, 0.1)
    with torch.no_grad():
        measured = score_tokens(model, batch, 0.1)
        logits = model(input_ids=batch["input_ids"]).logits
    for name in ("losses", "smoothed"):
        assert torch.allclose(getattr(measured, name), getattr(trained, name), rtol=0, atol=1e-12)
    assert torch.equal(measured.is_right, (logits.argmax(-1) == batch["labels"]))
    assert float(measured.parts[0]) == pytest.approx(float(trained.parts[0].detach()), rel=1e-12)
    assert torch.allclose(measured.logits, logits, rtol=0, atol=1e-12)


# --- models that do something after their output layer ---------------------------------------------------------------


def test_one_line_says_what_takes_memory(caplog):
    caplog.set_level(logging.INFO, "lit_tune")
    model = model_of("gemma2")
    for _ in range(2):
        score_tokens(model, batch_of(model))
        with torch.no_grad():
            score_tokens(model, batch_of(model))
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("logits   of all tokens at once")
    assert "Gemma2ForCausalLM, it changes them after its output layer" in line


class Biased(type(model_of("llama"))):
    """A bias after the output layer, which is trained and still 0."""

    def __init__(self, config):
        super().__init__(config)
        self.late = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, **inputs):
        outputs = super().forward(**inputs)
        outputs.logits = outputs.logits + self.late
        return outputs


def test_a_trained_bias_of_zeros_after_the_output_layer_is_seen():
    model = Biased(model_of("llama").config).double().eval()
    batch = batch_of(model)
    with torch.no_grad():  # nothing is trained here
        score_tokens(model, batch)
    scores = score_tokens(model, batch)
    assert scores.head is None
    same(gradients(model, scores.parts[0]), plain(model, batch), 1e-12)
    assert bool(model.late.grad.any())


def test_to_try_a_model_draws_nothing_and_leaves_no_hook():
    model = model_of("gpt2").train()
    torch.manual_seed(3)
    expected = model(input_ids=batch_of(model)["input_ids"]).logits
    torch.manual_seed(3)
    states, head = states_and_head(model, {"input_ids": batch_of(model)["input_ids"]})
    assert torch.equal(head(states), expected)
    assert not {**model.lm_head._forward_hooks, **model.lm_head._forward_pre_hooks}


@pytest.mark.parametrize("wrong", ["twice", "by name", "no layer"])
def test_an_output_layer_that_is_used_in_another_way_is_left_to_the_model(wrong):
    model = model_of("llama")
    inner = model.lm_head

    class Other(nn.Module):
        def forward(self, states):
            if wrong == "twice":
                inner(states)
            return inner(input=states) if wrong == "by name" else inner(states)

    model.lm_head = Other()
    model.get_output_embeddings = lambda: None if wrong == "no layer" else inner
    batch = batch_of(model)
    scores = score_tokens(model, batch)
    assert scores.head is None
    same(gradients(model, scores.parts[0]), plain(model, batch), 1e-12)


@pytest.mark.slow
def test_of_a_compiled_model_all_logits_are_computed(caplog):
    caplog.set_level(logging.INFO, "lit_tune")
    model = model_of("llama")
    model.compile(backend="eager")
    scores = score_tokens(model, batch_of(model))
    assert scores.head is None
    assert "it is compiled" in caplog.text


# --- memory, counted -------------------------------------------------------------------------------------------------


def allocations(work) -> tuple[int, int]:
    """Most bytes at a time above those before, and the largest of all allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    held = peak = 0
    for size in sizes:
        held += size
        peak = max(peak, held)
    return peak, max(sizes)


VOCABULARY, HIDDEN, TARGETS = 6000, 16, 512


@pytest.mark.parametrize("is_trained", [True, False])
def test_the_loss_takes_a_quarter_of_the_memory_of_all_logits(is_trained, monkeypatch):
    monkeypatch.setattr(token_scores, "SMALLEST_CHUNK", 2**14)
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(is_trained)
    states = torch.randn(1, TARGETS, HIDDEN, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (1, TARGETS))

    def chunked():
        TokenScores(labels, states, head=OutputLayer(head, VOCABULARY)).parts[0].backward()

    def called():
        hooked = OutputLayer(nn.Sequential(head), VOCABULARY)
        TokenScores(labels, states, head=hooked).parts[0].backward()

    def whole():
        F.cross_entropy(head(states).flatten(0, 1), labels.flatten(), reduction="sum").backward()

    logits = 4 * TARGETS * VOCABULARY
    expected, _ = allocations(whole)
    assert expected > 2.9 * logits
    for work, most in ((chunked, 2.2 / 8), (called, 3.2 / 8)):
        head.zero_grad()
        states.grad = None
        peak, largest = allocations(work)
        assert peak < most * logits + 3 * 4 * HIDDEN * (VOCABULARY + TARGETS)
        assert largest <= max(logits // 8, 4 * HIDDEN * VOCABULARY)
        assert peak < 0.25 * expected


def test_a_step_of_a_whole_model_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(token_scores, "SMALLEST_CHUNK", 2**12)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**{**SIZES, "vocab_size": 2000}))
    batch = batch_of(model, rows=4, tokens=60, share=1.0)
    score_tokens(model, batch)  # tried
    _, largest = allocations(lambda: score_tokens(model, batch).parts[0].backward())
    assert largest <= 4 * 4 * 60 * 2000 // 8
