"""``lit-tune push``."""

from pathlib import Path

from lit_tune.callbacks.model_card import FOLDER, PLACE
from lit_tune.cli import parse_for_run
from lit_tune.console import configure_logging
from lit_tune.durable import megabytes
from lit_tune.errors import ConfigError, ModelError, StorageError
from lit_tune.models.hub_upload import Hub, check_name
from lit_tune.models.publishing import CARD, OF_WEIGHTS, files_to_publish
from lit_tune.preflight.finished_run import use_best_weights
from lit_tune.run_dir import EXPORT_HASHES


def push(
    options: list[str],
    repo: str | None = None,
    folder: Path | None = None,
    public: bool = False,
    message: str = "Model trained with lit-tune",
    revision: str = "main",
) -> None:
    """Upload the run's verified best weights to the Hugging Face Hub, as one commit of a private repository.

    Args:
        options: The config: files and single keys; ``--config runs/x/config.yaml`` is enough.
        repo: Name of the repository, with or without its owner: me/my-model. It is made where there is none. The access
            token is that of `hf auth login`, or HF_TOKEN in the environment.
        folder: Upload this folder, written by `lit-tune export`, instead of a run's best weights.
        public: Let everybody see it.
        message: Of the commit.
        revision: Branch; one that is new begins at main.
    """
    configure_logging()
    if repo is None:
        raise ConfigError("the name of a repository is needed", where="--repo", fix="--repo my-model")
    check_name(repo)
    if folder is not None and options:
        raise ConfigError(f"has no effect beside --folder {folder}", where=options[0], fix="leave one of them out")
    if folder is not None and not folder.is_dir():
        raise ModelError(f"there is no folder {folder}", where="--folder", fix="`lit-tune export --output my_model`")
    own: set[str] = set()
    if folder is None:
        cli = parse_for_run(options, "push")
        module, datamodule = cli.parts(())
        if not use_best_weights(cli.run_dir, module, datamodule):
            raise StorageError(f"{cli.run_dir} holds no run", where="run_dir", fix="--config runs/my_run/config.yaml")
        folder, own = cli.run_dir.best, {*cli.run_dir.read()[EXPORT_HASHES]}
    files, left = files_to_publish(folder, own)
    if left:
        print(f"left out {', '.join(left[:8])}{' ...' if len(left) > 8 else ''}")
    hub = Hub(repo)
    contents: dict[str, Path | bytes] = dict(files)
    if CARD in files:
        contents[CARD] = card_for(files[CARD].read_text("utf-8"), hub.repo).encode()
    done = hub.upload(contents, public, message, revision, OF_WEIGHTS)
    if done.deleted:
        print(f"deleted  {', '.join(done.deleted)} of an earlier push")
    size = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in contents.values())
    who = "private" if done.is_private else "public"
    print(f"pushed   {done.url}  ({len(contents)} files, {megabytes(size)}, compared; {who}, commit {done.commit[:7]})")


def card_for(card: str, repo: str) -> str:
    """The model card with the repository's id in the lines that load the model.

    >>> card_for('run = pipeline("x", "PATH_OR_ID")', "me/it")
    'run = pipeline("x", "me/it")'
    """
    fetched = f'huggingface_hub.snapshot_download("{repo}")'
    return card.replace(f"folder = {FOLDER}", f"import huggingface_hub\n\nfolder = {fetched}").replace(
        PLACE, f'"{repo}"'
    )
