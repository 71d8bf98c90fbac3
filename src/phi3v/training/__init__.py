"""From arguments to an output folder: training and merging."""
