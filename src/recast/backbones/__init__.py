"""Text-to-video models: one file for each family, and the folder `show1`.

This room owns the classes, numbers and roles of each model, and the call of its network. It refuses
to know methods and motions. Begin with `base`, the interface of every model, then read `ltx`, the
shortest complete model.
"""
