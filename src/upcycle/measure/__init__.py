"""What is measured of a network: its cost, what its features share with another's, and what an export keeps."""
