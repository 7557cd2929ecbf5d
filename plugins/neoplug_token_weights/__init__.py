"""Token weights: how much each answer token counts, whatever the losses; one file each."""
