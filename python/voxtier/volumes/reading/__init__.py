"""Reading a volume: planes, boxes, patches, by NumPy's basic indexing."""
