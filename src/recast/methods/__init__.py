"""The motion-transfer methods: one file for each paper, named as users name the method.

This room owns the papers' settings, equations and presets. It refuses to know models, and methods
never import each other; what they share is in `feature_guidance`, `finetuning` and `motions`. Begin
with `dmt`; `recast.registry` finds new files and entry points without further registration.
"""
