"""The reference cases, built from code, each with its whole expected outcome."""

from frames.dicom.cases import cut, damaged, encapsulated, further, native, reported, sparse, without_pixels
from frames.dicom.cases.model import Case, SparseCase

LISTED: list[Case] = [*native.CASES, *encapsulated.CASES, *without_pixels.CASES]
"""The tick list of 114."""
FURTHER: list[Case] = [*further.CASES, *cut.CASES, *reported.CASES, *damaged.CASES]
SPARSE: list[SparseCase] = sparse.CASES
CASES = [*LISTED, *FURTHER]

__all__ = ["CASES", "FURTHER", "LISTED", "SPARSE", "Case", "SparseCase"]
