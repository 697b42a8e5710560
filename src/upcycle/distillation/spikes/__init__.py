"""What a spiking network copies of an ordinary one: its activations as rates, or its weights as they are."""
