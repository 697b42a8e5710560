"""Objectives on two views of an image, and prototypes of classes: learnt on top of features."""
