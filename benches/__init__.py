"""Benchmarks: each journey against its rivals, in the same run, with answers checked.

``python -m benches [JOURNEY ...] [--quick] [--rounds N]`` writes one JSON file a journey and one report
(``report.html``) to ``benches/results``. A file in ``journeys`` names its ways, its floor and its goals; it
reads what ``inputs`` makes and races what ``rivals`` opens; `measure` runs the ways in turns and `report`
draws them.
"""
