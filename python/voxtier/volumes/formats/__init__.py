"""What comes in: NIfTI files and DICOM series, read and checked."""
