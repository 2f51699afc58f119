"""The local cache of the Hugging Face hub.

Owns how the folder of a downloaded model is found. It refuses to know models: it downloads nothing
and reads no weights.
"""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from recast.errors import BadModel


def cached_folder(source: str) -> Path:
    """The folder of a hub id in the local cache. Raises `BadModel` if the cache does not have
    it."""
    # A repository that is no pipeline, such as an adapter, has a config.json but no index.
    for name in ("model_index.json", "config.json"):
        path = try_to_load_from_cache(source, name)
        if isinstance(path, str):
            return Path(path).parent
    raise BadModel(f"{source} is not downloaded yet")
