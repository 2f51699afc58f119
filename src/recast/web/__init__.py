"""The web page: `recast serve`, its queue of jobs, and the worker processes that run them.

The room owns jobs, uploads, and what a browser shows. It refuses to know the order of a run: a
worker calls `recast.pipeline`, as the command line does. Begin with `app.py` for what a request
meets, and with `worker.py` for what happens to a job.
"""
