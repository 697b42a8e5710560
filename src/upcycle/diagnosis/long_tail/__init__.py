"""The parts of repairs of a classifier whose rare classes go wrong: kept features, counts, and heads that are recorded."""
