"""``text_cnn``: a convolutional classifier of sentences, trained from nothing on the user's own words.

Kim 2014, "Convolutional Neural Networks for Sentence Classification" (https://arxiv.org/abs/1408.5882): word vectors,
filters over 3, 4 and 5 words, the maximum of each over the text, dropout, a linear layer. The baseline that a
pretrained model has to beat. As a transformers model it has a config, ``save_pretrained``, and the Auto classes find
it once this module is imported.

Shapes: B texts, T tokens, E embedding, F filters of a size, C classes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

NAME = "text_cnn"
"""``model.model_name_or_path`` of a new one."""

USUAL_LR = 1e-3
"""Learning rate where none is given: all weights are random. Kim's Adadelta has none to compare with."""


class TextCnnConfig(PretrainedConfig):
    """Sizes of the model; every one of them can stand under ``model.config_overrides``.

    Args:
        vocab_size: Most words that are known; a text's other words are all alike.
        embedding_size: E.
        num_filters: F, of each size.
        filter_sizes: Words that a filter sees.
        hidden_dropout_prob: Dropout before the linear layer.
        pad_token_id: Its embedding is zero.
        **kwargs: What every config has (labels, ...).
    """

    model_type = NAME

    def __init__(
        self,
        vocab_size: int = 30_000,
        embedding_size: int = 128,
        num_filters: int = 100,
        filter_sizes: tuple[int, ...] | list[int] = (3, 4, 5),
        hidden_dropout_prob: float = 0.5,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.embedding_size, self.num_filters = vocab_size, embedding_size, num_filters
        self.filter_sizes, self.hidden_dropout_prob = list(filter_sizes), hidden_dropout_prob
        super().__init__(pad_token_id=pad_token_id, **kwargs)


class TextCnnPreTrainedModel(PreTrainedModel):
    """What both classes share."""

    config_class = TextCnnConfig
    base_model_prefix = NAME
    main_input_name = "input_ids"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
            with torch.no_grad():
                module.weight[self.config.pad_token_id] = 0.0
        elif isinstance(module, nn.Linear | nn.Conv1d):
            module.reset_parameters()


class TextCnnModel(TextCnnPreTrainedModel):
    """Words -> the strongest answer of each filter anywhere in the text."""

    def __init__(self, config: TextCnnConfig) -> None:
        super().__init__(config)
        self.embeddings: nn.Module = nn.Embedding(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        sizes = config.filter_sizes
        self.filters = nn.ModuleList(
            nn.Conv1d(config.embedding_size, config.num_filters, size, padding=size - 1) for size in sizes
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word vectors."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word vectors."""
        self.embeddings = value

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutputWithPooling:
        """``pooler_output`` (B, number of sizes * F) of ``input_ids`` (B, T).

        A filter counts wherever it sees a word of the text; beyond the text there is nothing, however far a batch is
        padded.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.to(self.dtype)
        words = self.embeddings(input_ids) * mask.unsqueeze(-1)
        sized = zip(self.filters, self.config.filter_sizes, strict=True)
        found = [self.strongest(layer, size, words.transpose(1, 2), mask.unsqueeze(1)) for layer, size in sized]
        return BaseModelOutputWithPooling(last_hidden_state=words, pooler_output=torch.cat(found, dim=1))

    @staticmethod
    def strongest(layer: nn.Module, size: int, words: Tensor, mask: Tensor) -> Tensor:
        """(B, F) largest answers, 0 for a text without words; of (B, E, T) and (B, 1, T)."""
        answers = functional.relu(layer(words))  # both ends were padded by size - 1
        # a max_pool1d would do as well; the ONNX exporter (torch 2.13) takes its length for a constant
        sees_text = functional.conv1d(mask, mask.new_ones(1, 1, size), padding=size - 1) > 0
        return (answers * sees_text).amax(-1)


class TextCnnForSequenceClassification(TextCnnPreTrainedModel):
    """The classifier."""

    def __init__(self, config: TextCnnConfig) -> None:
        super().__init__(config)
        self.num_labels = len(config.id2label or {}) or 2
        self.text_cnn = TextCnnModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(len(config.filter_sizes) * config.num_filters, self.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """``logits`` (B, C), and with ``labels`` transformers' own loss for the config's ``problem_type``."""
        pooled = self.text_cnn(input_ids, attention_mask).pooler_output
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def is_new(name: str) -> bool:
    """Whether a model name asks for a new one; a folder of that name is a folder."""
    return name == NAME and not Path(name).is_dir()


AutoConfig.register(NAME, TextCnnConfig, exist_ok=True)
AutoModel.register(TextCnnConfig, TextCnnModel, exist_ok=True)
AutoModelForSequenceClassification.register(TextCnnConfig, TextCnnForSequenceClassification, exist_ok=True)
