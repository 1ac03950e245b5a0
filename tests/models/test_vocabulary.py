"""Added tokens: how the tokenizer finds them, which rows the model gets; transformers agrees on all the rest."""

import pytest
import torch
from toy import make_tiny_decoder, make_tiny_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    LlamaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from lit_tune.errors import ConfigError, ModelError
from lit_tune.models.text_reader import TextReader
from lit_tune.models.vocabulary import NewTokens, embed, read_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Knows mud, ##- and ##mud, and a mask."""
    return make_tiny_model(tmp_path_factory.mktemp("words") / "m", subwords=True, mask=True)


def reader(folder, tokens=None, special=(), **options):
    return TextReader(str(folder), add_tokens=tokens, add_special_tokens=list(special), **options)


def untied(tied=False):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=22, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def t5():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(vocab_size=22, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )


def test_a_new_word_is_one_token_and_begins_as_the_mean_of_its_pieces(folder):
    words = reader(folder, ["mud-mud"], ["<e1>"])
    before = AutoTokenizer.from_pretrained(folder)
    pieces = before("mud-mud", add_special_tokens=False)["input_ids"]
    assert len(pieces) == 3
    ids = words.tokenizer("<e1> mud-mud rock", add_special_tokens=False)["input_ids"]
    assert ids == [len(before) + 1, len(before), *before("rock", add_special_tokens=False)["input_ids"]]
    assert words.new_tokens == NewTokens(len(before) + 2, {len(before): pieces, len(before) + 1: []})
    model = AutoModelForMaskedLM.from_pretrained(folder)
    old = model.get_input_embeddings().weight.detach().clone()
    embed(model, words.new_tokens)
    new = model.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old)
    assert torch.allclose(new[len(old)], old[pieces].mean(0))
    assert torch.allclose(new[len(old) + 1], old.mean(0))  # [UNK] is no piece
    assert model.config.vocab_size == len(old) + 2


def test_words_are_found_as_a_whole_and_markers_anywhere(folder):
    words = reader(folder, ["art", "รถ"], ["<e1>"]).tokenizer
    tokens = words.tokenize("art party <e1>art artรถ")
    assert tokens.count("art") == 2
    assert (tokens.count("<e1>"), tokens.count("รถ")) == (1, 1)
    assert words.decode(words("<e1> mud")["input_ids"], skip_special_tokens=True) == "mud"
    assert "[CLS]" in words.all_special_tokens
    assert "<e1>" in words.all_special_tokens


def pretrained(auto_class):
    """What is new in it starts from the same random numbers each time."""

    def make(folder):
        torch.manual_seed(0)
        return auto_class.from_pretrained(folder)

    return make


MAKERS = [lambda _: untied(), lambda _: untied(tied=True), lambda _: t5()]
MAKERS += [pretrained(AutoModelForMaskedLM), pretrained(AutoModel)]


@pytest.mark.parametrize("make", MAKERS, ids=["untied", "tied", "t5", "masked", "base"])
def test_transformers_resizes_to_the_same_shapes_and_keeps_the_same_rows(folder, make):
    ours, theirs = make(folder), make(folder)
    size = int(ours.get_input_embeddings().weight.shape[0])
    embed(ours, NewTokens(size + 3, {size: [5, 6], size + 1: [], size + 2: [7]}))
    theirs.resize_token_embeddings(size + 3)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert {n: p.shape for n, p in mine.items()} == {n: p.shape for n, p in other.items()}
    grown = [n for n, p in make(folder).state_dict().items() if p.shape != mine[n].shape]
    assert grown
    for name, value in mine.items():
        assert torch.equal(
            value[:size] if name in grown else value, other[name][:size] if name in grown else other[name]
        )
        if name in grown:
            assert torch.isfinite(value).all()
    if ours.get_output_embeddings() is not None:
        tied = [m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (ours, theirs)]
        assert tied[0] == tied[1]
    for bias in (n for n in grown if mine[n].dim() == 1):
        assert torch.allclose(mine[bias], other[bias], atol=1e-6)  # of all biases the mean, as theirs


def test_an_untied_head_begins_as_the_mean_of_the_pieces_too():
    model = untied()
    head = model.get_output_embeddings().weight.detach().clone()
    embed(model, NewTokens(23, {22: [4, 5]}))
    assert torch.allclose(model.get_output_embeddings().weight[22], head[[4, 5]].mean(0))


def test_nothing_is_drawn_at_random():
    models = []
    for seed in (1, 2):
        model = untied()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        embed(model, NewTokens(24, {22: [4, 5], 23: []}))
        assert torch.equal(torch.get_rng_state(), state)
        models.append(model.state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_rows_that_pad_the_vocabulary_are_used_up_first():
    model = untied()
    old = model.get_input_embeddings().weight.detach().clone()
    embed(model, NewTokens(20, {18: [4], 19: []}))
    new = model.get_input_embeddings().weight
    assert new.shape == old.shape
    assert torch.equal(new[18], old[4])
    known = [i for i in range(22) if i not in (18, 19)]
    assert torch.allclose(new[19], old[known].mean(0))
    assert torch.equal(new[known], old[known])


def test_a_model_without_numbers_grows_too():
    with torch.device("meta"):
        model = untied()
    embed(model, NewTokens(30, {29: [1]}))
    assert model.lm_head.weight.shape[0] == model.config.vocab_size == 30


def test_a_tokenizer_with_more_tokens_than_rows_is_an_error_that_names_them(tmp_path):
    folder = make_tiny_decoder(tmp_path / "d")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["covid", "spike"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"(?s)has 24 tokens, the model embeds 22.*add_tokens: \['covid', 'spike'\]"):
        _ = TextReader(str(folder)).tokenizer
    with pytest.raises(ModelError, match=r"\['spike'\]"):
        _ = reader(folder, ["covid"]).tokenizer
    given = reader(folder, ["covid", "spike"])
    assert len(given.tokenizer) == 24
    assert given.new_tokens == NewTokens(24, {22: [], 23: []})


def test_tokens_come_from_a_list_or_a_file(tmp_path):
    path = tmp_path / "tokens.txt"
    path.write_text("covid\n\n spike \n", "utf-8")
    assert read_tokens(str(path)) == read_tokens(["covid", "spike"])
    with pytest.raises(ConfigError, match=r"no file with a token per line\nFix: .*\[nowhere\]"):
        read_tokens("nowhere")
    with pytest.raises(ConfigError, match="'a' stands there twice"):
        read_tokens(["a", "b", "a"])
    with pytest.raises(ConfigError, match="empty token"):
        read_tokens([" "])
