"""Shared by methods with an unlabelled target: what predictors say, the bottleneck, and the steps of training."""
