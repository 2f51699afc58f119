"""The benchmark: suites of clips and prompts, every method on each of them, rows and a report.

The room owns suites, rows of results, statistics and the report. It refuses to know how one clip
becomes another: it calls the pipeline, and has results scored by `recast.evaluation`. Begin with
`suite.py` and `rows.py`, then read `runner.py` and `report.py`.
"""
