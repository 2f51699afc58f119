"""The benchmark: methods compared on a suite of clips and prompts, with rows and a report.

The room owns suites, rows of results, statistics and the report. It refuses to know how a method
works and how a metric is computed: it calls `recast.pipeline` and `recast.evaluation`. Begin with
`suite.py` and `rows.py`, then read `runner.py` and `report.py`.
"""
