"""Training: groups become batches, Lightning runs the loop, callbacks keep the best model."""
