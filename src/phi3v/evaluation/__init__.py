"""From answers and references to scores, and from a run to its report."""
