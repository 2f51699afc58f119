"""`recast serve`: the page in a browser."""

from importlib.util import find_spec

from recast.cli import flags
from recast.cli.console import complain, waiting
from recast.errors import missing_extra
from recast.media.video import Video
from recast.pipeline import recipes
from recast.worlds.shapes import world

_DEMO = "demo.mp4"


def serve(argv: list[str], command: str, about: str) -> None:
    """Run the server until Ctrl-C."""
    with missing_extra("web"):
        for name in ("gradio", "uvicorn"):
            if find_spec(name) is None:  # gradio itself is imported later, since it takes seconds
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    from recast.web.config import ServeConfig
    from recast.web.samples import write_samples

    config = flags.parse(ServeConfig, ServeConfig(), flags.local_ray(argv), command, about)
    samples = config.folder / "samples"
    write_samples(samples)
    if not (samples / _DEMO).is_file():
        Video(world.render(world.sample(recipes.SEED)), world.FPS).save(samples / _DEMO)
    with waiting("starting the server"):
        from recast.web.app import serve as run
    run(config, complain)
