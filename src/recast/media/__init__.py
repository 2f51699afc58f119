"""Clips at the edge of Recast: files on disk become arrays of pixels, and arrays become files.

The room owns decoding, the choice of frames, repeated frames, fitting to a size, encoding, contact
sheets, and writing without partial files. It refuses to know torch, models and methods: lengths,
rates and sizes are arguments. Begin with `video.py`, then read `frame_source.py` and
`frame_selection.py`.
"""
