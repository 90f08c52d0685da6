"""Frames and the index in the forms of other tools: Arrow and Parquet, pixels by pydicom, datasets."""
