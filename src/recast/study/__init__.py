"""Human studies: people compare or rate the results of several systems, and a report says how.

The room owns the design of a study, the page of the raters, their answers and the statistics. It
refuses to know torch, models and how a result was made: a study begins with finished clips. Begin
with `design.py` and `forms.py`, then read `creation.py`, `app.py` and `report.py`.
"""
