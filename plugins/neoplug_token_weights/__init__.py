"""Token weights: factors of each answer token's loss and gradient, for all losses alike; one file each."""
