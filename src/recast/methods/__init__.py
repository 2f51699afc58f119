"""The motion-transfer methods: one file for each paper. The name of the file is the method's name.

This room owns the papers' settings, equations and presets. It refuses to know models, and methods
never import each other; what they share is in `feature_guidance`, `finetuning` and `motions`. Begin
with `dmt`. `recast.registry` finds a new file or entry point without further registration.
"""
