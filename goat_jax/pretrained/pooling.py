"""Pooling that a checkpoint of sentence-transformers was trained with."""

from pathlib import Path

from goat_jax.files import read_json

MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
"""Key of a pooling config -> our name of the pooling (`goat_jax.nn.modules.POOLING`)."""


def pooling_of(folder: Path) -> str | None:
    """Returns the pooling that a checkpoint's modules.json names; None if it names none of ours.

    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> entry = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    >>> _ = (folder / "modules.json").write_text(json.dumps([entry]))
    >>> (folder / "1_Pooling").mkdir()
    >>> _ = (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    >>> pooling_of(folder), pooling_of(Path("nowhere"))
    ('mean', None)
    """
    modules = folder / "modules.json"
    content = read_json(modules) if modules.is_file() else []
    entries = (
        [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []
    )
    for entry in entries:
        config = folder / str(entry.get("path")) / "config.json"
        if str(entry.get("type")).endswith(".Pooling") and config.is_file():
            modes = read_json(config)
            chosen = [mode for mode in modes if modes[mode] is True and mode.startswith("pooling_")]
            return MODES.get(chosen[0]) if len(chosen) == 1 else None
    return None
