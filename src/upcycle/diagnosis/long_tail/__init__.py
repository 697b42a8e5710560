"""Parts that repairs of rare classes share: features that are kept, counts of classes, and heads that are recorded."""
