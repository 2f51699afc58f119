"""The conductor: the only room that knows the order of a run.

The room owns the config of a run, its checks, its stages, the motion store and the files that it
writes; the Python functions, the command line and the benchmark are thin callers of it. It refuses
to know any method, any model and any terminal. Begin with `run.transfer`, then read `stages.py`.
"""
