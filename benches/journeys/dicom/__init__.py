"""How fast tables come out of DICOM files."""
