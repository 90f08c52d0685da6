"""The resampling engine: the bits of the stock MONAI pipeline of a configuration for a fraction of the work.

`engine.py` decides for each volume whether the core (``rust/src/resample/``) makes its tensor or MONAI does;
`plan.py` makes the tables that the core works by, from answers of torch and MONAI (`rounding.py`).
"""
