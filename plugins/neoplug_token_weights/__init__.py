"""Token weights, one file each: a factor for each answer token's loss and gradient, the same for all losses."""
