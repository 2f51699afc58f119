"""Text-to-video models, one file for each family; the module `show1` is a folder.

This room owns which classes, numbers and roles make up a model, and how its network is called. It
refuses to know methods and motions. Begin with `base`, which says what every model offers, and then
read `ltx`, the shortest complete model.
"""
