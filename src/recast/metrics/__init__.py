"""One file per name; see `recast.registry`."""
