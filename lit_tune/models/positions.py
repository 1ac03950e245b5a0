"""How many tokens a model can read."""

from transformers import PretrainedConfig, PreTrainedTokenizerBase

ROBERTA_LIKE = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "longformer",
    "xmod",
    "mpnet",
    "data2vec-text",
    "ibert",
    "luke",
    "lilt",
    "markuplm",
    "layoutlmv3",
    "esm",
)


def max_positions(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Most tokens the model can read, or None where nothing limits it (relative positions)."""
    positions = num_positions(config)
    limits = [] if positions is None else [positions]
    if 0 < tokenizer.model_max_length < 1_000_000:  # "no limit" is stored as 1e30
        limits.append(tokenizer.model_max_length)
    return min(limits) if limits else None


def num_positions(config: PretrainedConfig) -> int | None:
    """Tokens the model has positions for, or None where nothing limits it."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not (isinstance(positions, int) and positions > 0):
        return None
    # RoBERTa counts positions from padding_idx + 1, so that two of its 514 rows are never used
    offset = (config.pad_token_id or 0) + 1 if config.model_type in ROBERTA_LIKE else 0
    return positions - offset
