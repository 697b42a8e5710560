"""The common part of the methods without data: options, inverting a network, the pool of images and its pictures."""
