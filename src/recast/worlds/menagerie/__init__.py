"""The menagerie: articulated animals and vehicles that move through layered landscapes.

It owns the figures and their gaits, the landscapes, the exact truth of every clip and the captions.
It refuses to know models. Begin reading with `world.py`.
"""
