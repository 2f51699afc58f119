"""`recast menagerie`: train models on animals and vehicles that move through landscapes."""

from pathlib import Path

from recast import registry
from recast.cli import flags
from recast.cli.console import say, show


def train(argv: list[str], command: str, about: str) -> None:
    """Train a model of the menagerie."""
    with registry.quiet_imports():
        # diffusers and transformers load slowly.
        from recast.worlds.menagerie.dataset import DATASET
        from recast.worlds.training import train as training

    default = training.TrainConfig(out=Path("out") / "menagerie", network="transformer")
    config = flags.parse(training.TrainConfig, default, argv, command, about)
    say(str(show(training.train(config, DATASET))))
