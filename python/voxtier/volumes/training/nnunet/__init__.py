"""nnU-Net v2, which is not imported: its cases become a store, of which its trainer takes batches."""
