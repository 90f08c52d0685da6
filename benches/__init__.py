"""Benchmarks: each journey against its rivals, in the same run, with answers checked.

``python -m benches [JOURNEY ...] [--quick] [--rounds N]`` writes one JSON file a journey and one report
(``report.html``) to ``benches/results``. A file here is a journey: it names its ways, its floor and its
goals; `measure` runs them in turns and `report` draws them.
"""
