"""Pieces beside those of ``configs/own_pieces``: right ones of other kinds, and wrong ones; named by class path."""

import torch
from torch import nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MedianSurprise(Metric):
    """Keeps a number per row, of unequal counts per rank."""

    higher_is_better = False

    def __init__(self):
        super().__init__()
        self.add_state("kept", [], dist_reduce_fx="cat")

    def update(self, preds, target):
        self.kept.append(-preds.gather(1, target[:, None])[:, 0].log())

    def compute(self):
        return dim_zero_cat(self.kept).median()


class Undirected(MedianSurprise):
    higher_is_better = None


class Accuracy(MedianSurprise):
    """Has the name of one of ours."""


class PerClass(MedianSurprise):
    def compute(self):
        return torch.ones(3)


class Unbuildable(MedianSurprise):
    def __init__(self, needed):
        super().__init__()


class PooledConfig(BertConfig):
    model_type = "pooled_bert"


class PooledBert(BertPreTrainedModel):
    """A head of one's own on a pretrained model of transformers."""

    config_class = PooledConfig

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.own_head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask, token_type_ids=None, **_):
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        strongest = hidden.masked_fill(attention_mask[..., None] == 0, -1e4).amax(1)
        return SequenceClassifierOutput(logits=self.own_head(self.dropout(strongest)))


AutoConfig.register("pooled_bert", PooledConfig, exist_ok=True)
AutoModelForSequenceClassification.register(PooledConfig, PooledBert, exist_ok=True)


class Unregistered(PooledBert):
    """Its config gives another class."""
