"""What every room needs of the machine: processes, files that appear whole, text for terminals."""
