"""How fast frame tables are read from DICOM files."""
