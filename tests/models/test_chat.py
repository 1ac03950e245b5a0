"""Which tokens of a conversation are the model's to write: compared with what it is given when it writes them."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_tune.errors import ConfigError, ModelError
from lit_tune.models.chat import Chat
from lit_tune.models.chat_templates import TEMPLATES, read_template, use_template

TURNS = [
    {"role": "user", "content": "Hello there, what is 3 + 4?"},
    {"role": "assistant", "content": "It is 7."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes, it is 7."},
]
# written for this test after the patterns of families of models: what closes an answer, and what it does to older ones
FAMILIES = {
    **TEMPLATES,
    "header": """{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\\n\\n' + m.content | trim
        + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}""",
    "inst": """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
        {%- else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "unclosed": """{% for m in messages %}{{ m.role + '> ' + m.content + '\\n' }}{% endfor %}
        {%- if add_generation_prompt %}{{ 'assistant> ' }}{% endif %}""",
    # a thought is begun for the last answer, and taken out of earlier ones
    "thinking": """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if loop.last and m.role != 'user' %}
        {{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}
        {%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
}
CLOSED_BY = {"plain": "</s>", "alpaca": "</s>", "chatml": "<|im_end|>", "header": "<|eot|>", "inst": " </s>"}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>"]


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level one as GPT-2's, or one that writes spaces as a letter, as Llama 2's."""
    backend = Tokenizer(models.BPE(unk_token="<s>", byte_fallback=kind == "letters"))
    alphabet = []
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        alphabet = sorted({*"".join(m["content"] for m in TURNS), *"\n>[]/:#▁", *map(chr, range(65, 123))})
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator([m["content"] for m in TURNS] * 3 + ["User: Assistant: ### Instruction:"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    return tokenizer


@pytest.fixture(scope="module", params=["bytes", "letters"])
def tokenizer(request):
    return make_tokenizer(request.param)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_what_follows_what_the_model_is_given(family, tokenizer):
    """By the template's own word: what it renders of the messages before, with the beginning of an answer."""
    tokenizer.chat_template = FAMILIES[family]
    chat = Chat(tokenizer)
    rendered = chat.answers(TURNS)
    closed_by = CLOSED_BY.get(family, "<|im_end|>" if family == "thinking" else "")
    for (start, end), count in zip(rendered.answers, (1, 3), strict=True):
        given = tokenizer.apply_chat_template(TURNS[:count], tokenize=False, add_generation_prompt=True)
        assert rendered.text[:start] == given
        assert rendered.text[start:end].strip().endswith(TURNS[count]["content"] + closed_by)
    (encoded,) = chat.encode([rendered])
    (last,) = chat.encode([chat.answers(TURNS, last_only=True)])
    given = tokenizer.apply_chat_template(TURNS[:3], add_generation_prompt=True, return_dict=False)
    assert last.ids[: last.num_prompt] == given
    assert all(encoded.is_target[encoded.num_prompt :]), "all that follows is the last answer"
    assert encoded.ids[-1] == tokenizer.convert_tokens_to_ids(closed_by.strip() or "</s>")
    learned = tokenizer.decode([i for i, t in zip(encoded.ids, encoded.is_target, strict=True) if t])
    assert "Sure" not in learned
    assert "Hello" not in learned
    assert learned.count("7.") == 2


def test_the_tokens_of_a_conversation_are_the_templates_own(tokenizer):
    """Where no token reaches over an edge: those of ``apply_chat_template``, up to the end of the last answer."""
    tokenizer.chat_template = FAMILIES["header"]
    (encoded,) = Chat(tokenizer).encode([Chat(tokenizer).answers(TURNS)])
    assert encoded.ids == tokenizer.apply_chat_template(TURNS, return_dict=False)


def test_a_question_without_an_answer_ends_with_the_beginning_of_one(tokenizer):
    tokenizer.chat_template = FAMILIES["chatml"]
    chat = Chat(tokenizer)
    (encoded,) = chat.encode([chat.answers(TURNS[:3])])
    assert encoded.ids == tokenizer.apply_chat_template(TURNS[:3], add_generation_prompt=True, return_dict=False)
    assert encoded.num_prompt == len(encoded.ids)
    assert sum(encoded.is_target) > 2, "of the answer before it"


def test_only_the_last_answer(tokenizer):
    tokenizer.chat_template = FAMILIES["chatml"]
    chat = Chat(tokenizer)
    (all_of_them,), (last,) = (chat.encode([chat.answers(TURNS, last_only=only)]) for only in (False, True))
    assert last.is_target[last.num_prompt :] == all_of_them.is_target[last.num_prompt :]
    assert not any(last.is_target[: last.num_prompt])
    assert any(all_of_them.is_target[: last.num_prompt])


def test_tokens_that_end_an_answer(tokenizer):
    for family, tokens in (("chatml", ["</s>", "<|im_end|>"]), ("plain", ["</s>"]), ("unclosed", ["</s>"])):
        tokenizer.chat_template = FAMILIES[family]
        assert tokenizer.convert_ids_to_tokens(Chat(tokenizer).end_tokens) == tokens


def test_a_template_that_refuses_says_why(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('Only user and assistant roles') if messages[0].role == 'system' }}"
    with pytest.raises(ValueError, match="Only user and assistant roles"):
        Chat(tokenizer).answers([{"role": "system", "content": "x"}, *TURNS])


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[-1].content | length }}",
    ],
    ids=["left out", "counted at the end"],
)
def test_a_template_that_hides_an_answer_is_an_error(template, tokenizer):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="cannot be found"):
        Chat(tokenizer).answers(TURNS)


def test_templates_by_name_by_file_and_by_mistake(tmp_path, tokenizer):
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    assert read_template(str(tmp_path / "mine.jinja")) == "{{ messages[0].content }}"
    with pytest.raises(ConfigError, match="alpaca"):
        read_template("alpacca")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_template(str(tmp_path / "other.jinja"))
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        use_template(tokenizer, None)
    use_template(tokenizer, "plain")
    assert tokenizer.chat_template == TEMPLATES["plain"]
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, "a")), eos_token="</s>"
    )
    with pytest.raises(ModelError, match=r"<\|im_start\|>"):
        use_template(bare, "chatml")
