"""Verification: whether a model works on this machine, checked in rising order, with a report.

The room owns the checks, their limits with the sources of these limits, the real clips on which
they run, and the report. It refuses to know how a run works and single models. Begin with
`verify.py`, then read `check.py` and one of the checks, such as `round_trip.py`.
"""
