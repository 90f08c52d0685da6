"""One DICOM file: its frame table, its metadata, and both explained."""
