"""Parts of masked autoencoders: views of an image, masks and patches, decoders, and a target that follows."""
