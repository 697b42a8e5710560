"""What methods learn on top of features: objectives on two views of an image, and prototypes of classes."""
