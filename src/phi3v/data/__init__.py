"""The data room: from records on disk to batches for the model."""
