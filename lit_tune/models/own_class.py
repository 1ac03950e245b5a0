"""A model class of the user's own, named by a config: a ``PreTrainedModel`` that transformers knows once imported."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from lit_tune.errors import ConfigError
from lit_tune.imports import import_class

KEY = "model.model_class"


def own_config(path: str | None, auto_class: Any) -> type[PretrainedConfig] | None:
    """The config class of the model class, whose module is imported by it; None where none is named.

    lit-tune registers nothing itself: what a plain ``import my_package`` does not do, nobody who is given ``best/``
    could load.

    Args:
        path: Class path.
        auto_class: HF Auto class of the task, which must give this class for its config.

    Raises:
        ConfigError: Not allowed, not there, no model, or not registered.
    """
    if path is None:
        return None
    found = import_class(path, where=KEY)
    if not issubclass(found, PreTrainedModel):
        raise ConfigError(f"{path} is no PreTrainedModel of transformers", where=KEY, fix="derive it from that")
    config_class: Any = found.config_class
    if config_class is None or not config_class.model_type:
        raise ConfigError(
            f"{path} has no config class with a model_type",
            where=KEY,
            fix="config_class = MyConfig in the model, model_type = 'my_model' in MyConfig",
        )
    try:
        is_known = type(AutoConfig.for_model(config_class.model_type)) is config_class
        is_known = is_known and auto_class._model_mapping[config_class] is found
    except (KeyError, ValueError):
        is_known = False
    if not is_known:
        name = config_class.__name__
        raise ConfigError(
            f"import {found.__module__} does not make {found.__name__} the {auto_class.__name__} of {name}",
            where=KEY,
            fix=f"AutoConfig.register({config_class.model_type!r}, {name}) and {auto_class.__name__}.register({name}, "
            f"{found.__name__}) at its end, {name} being a config class of your own with a model_type of its own",
        )
    return config_class


def module_to_import(model: Any) -> str | None:
    """The module that makes a model's class known to transformers, where that does not know it by itself.

    Args:
        model: A model, plain or adapted.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = type(base).__module__
    return None if module.split(".")[0] in ("transformers", "transformers_modules") else module
