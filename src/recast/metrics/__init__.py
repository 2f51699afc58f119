"""Metrics: numbers for a result, alone or against its source. One file per metric, found by name.

The room owns the formulas and the direction of each metric (higher or lower is better). It refuses
to load files or networks: `recast.evaluation` tracks points and embeds frames, and metrics compute
from that. Begin with `base.py`, then read `motion_fidelity.py`.
"""
