"""The benchmark: suites of clips and prompts, every method on all of them, rows and a report."""
