"""What a training step costs, against the original and against the library's defaults."""
