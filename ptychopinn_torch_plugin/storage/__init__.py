"""Files of this package: the model file, safe reading of tensor files, and writing that leaves a whole file or none."""
