"""Metrics: numbers about a result, alone or compared with its source. One file is one metric.

The room owns the formulas and the direction of each metric (higher or lower is better). It refuses
to load files or networks: `recast.evaluation` tracks points and embeds frames, and metrics compute
from that. Begin with `base.py`, then read `motion_fidelity.py`.
"""
