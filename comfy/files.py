"""Where models and motions are: in the folders that ComfyUI keeps for models.

Models in diffusers' format are in ComfyUI's folder `diffusers`, and motion files are in a folder
`recast_motions` beside it. `extra_model_paths.yaml` can add places for both.
"""

import os
from pathlib import Path

import folder_paths

from recast.errors import BadModel
from recast.pipeline import model_loading
from recast.pipeline.source_clip import MOTION_SUFFIX

MOTIONS = "recast_motions"
"""ComfyUI's name of the folder of motion files."""
_DIFFUSERS = "diffusers"
_INDEX = "model_index.json"


def register_motions() -> None:
    """Tell ComfyUI where motion files are, so that other places can be added to it."""
    folder_paths.add_model_folder_path(MOTIONS, os.path.join(folder_paths.models_dir, MOTIONS))


def model_names() -> list[str]:
    """The models to choose from: Recast's short names, then the folders of ComfyUI that Recast can
    load, as "diffusers/NAME"."""
    return [*sorted(model_loading.aliases()), *sorted(_model_folders())]


def model_source(name: str) -> str:
    """What `recast.load` takes for a model that was chosen. Raises `BadModel` for a folder that is
    gone."""
    if not name.startswith(f"{_DIFFUSERS}/"):
        return name
    folders = _model_folders()
    if name not in folders:
        raise BadModel(f"there is no model folder {name} any more; choose another model")
    return str(folders[name])


def motion_names() -> list[str]:
    """The motion files to choose from."""
    return [
        name for name in folder_paths.get_filename_list(MOTIONS) if name.endswith(MOTION_SUFFIX)
    ]


def motion_path(name: str) -> Path:
    """The path of a motion file that was chosen. Raises `FileNotFoundError`."""
    return Path(folder_paths.get_full_path_or_raise(MOTIONS, name))


def new_motion_path(prefix: str) -> Path:
    """The path of a motion file that does not exist yet, numbered as ComfyUI numbers its outputs.
    It is always inside the folder of motion files."""
    home, *_ = folder_paths.get_folder_paths(MOTIONS)
    os.makedirs(home, exist_ok=True)
    folder, name, counter, *_ = folder_paths.get_save_image_path(prefix, home)
    return Path(folder) / f"{name}_{counter:05}_{MOTION_SUFFIX}"


def _model_folders() -> dict[str, Path]:
    """The folders of models that Recast can load, by the name in the list of choices."""
    found: dict[str, Path] = {}
    for home in map(Path, folder_paths.get_folder_paths(_DIFFUSERS)):
        for index in home.rglob(_INDEX):
            name = f"{_DIFFUSERS}/{index.parent.relative_to(home).as_posix()}"
            if name not in found and _is_loadable(index.parent):
                found[name] = index.parent
    return found


def _is_loadable(folder: Path) -> bool:
    try:
        model_loading.backbone_module(str(folder), download=False)
    except BadModel:
        return False
    return True
