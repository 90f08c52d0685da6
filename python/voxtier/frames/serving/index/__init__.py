"""What serving asks of the frame index, and what it writes back."""
