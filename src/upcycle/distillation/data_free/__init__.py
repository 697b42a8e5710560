"""What the methods without data share: inverting a network, the pool of images, its pictures, and the options."""
