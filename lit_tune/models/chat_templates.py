"""Chat templates by name, for base models that have none; each ends an answer with a token that is known already.

A template is a Jinja text that transformers renders in a sandbox; it is saved with the tokenizer, so that
``apply_chat_template`` and the text-generation pipeline read an export as it was trained.
"""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lit_tune.errors import ConfigError, ModelError, nearest

KEY = "task.init_args.chat_template"

PLAIN = """\
{{- bos_token }}
{%- for message in messages %}
{{- message['role'] | capitalize + ': ' + (message['content'] | trim) }}
{{- eos_token if message['role'] == 'assistant' }}
{{- '\\n' }}
{%- endfor %}
{{- 'Assistant:' if add_generation_prompt }}"""

ALPACA = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- '### Response:\\n' + (message['content'] | trim) + eos_token + '\\n\\n' }}
{%- elif message['role'] == 'system' %}
{{- (message['content'] | trim) + '\\n\\n' }}
{%- else %}
{{- '### Instruction:\\n' + (message['content'] | trim) + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{{- '### Response:\\n' if add_generation_prompt }}"""

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] | trim) + '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt }}"""

TEMPLATES = {"plain": PLAIN, "alpaca": ALPACA, "chatml": CHATML}
WANTED_TOKENS = {"chatml": ("<|im_start|>", "<|im_end|>")}


def read_template(name: str) -> str:
    """The text of a template.

    Args:
        name: ``plain``, ``alpaca`` or ``chatml``, or a file with a Jinja template.

    Raises:
        ConfigError: There is none of the name.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name)
    if path.suffix in (".jinja", ".jinja2", ".txt") or path.is_file():
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigError(f"{name} cannot be read: {reason}", where=KEY, fix="a file with a template") from error
    close = nearest(name, list(TEMPLATES))
    fix = f"{KEY}: {close}" if close else f"{', '.join(TEMPLATES)}, or a .jinja file"
    raise ConfigError(f"there is no template {name!r}", where=KEY, fix=fix)


def use_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Give a tokenizer a template; without a name it needs one of its own.

    Args:
        tokenizer: Receives it.
        name: See :func:`read_template`.

    Raises:
        ConfigError: There is no template of the name.
        ModelError: The tokenizer has none, or lacks tokens that the template is made of.
    """
    if name is not None:
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in WANTED_TOKENS.get(name, ()) if token not in vocabulary]
        if missing:
            raise ModelError(
                f"the tokenizer has no {' and no '.join(missing)}, which {name} is made of",
                where=KEY,
                fix=f"{KEY}: plain, which needs no token of its own",
            )
        tokenizer.chat_template = read_template(name)
    elif tokenizer.chat_template is None:
        raise ModelError(
            "the tokenizer has no chat template, as those of base models",
            where="model.model_name_or_path",
            fix=f"{KEY}: plain (or {', '.join(n for n in TEMPLATES if n != 'plain')}, or a .jinja file)",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token: an answer would have no end",
            where="data.tokenizer",
            fix="a tokenizer with an eos token",
        )
