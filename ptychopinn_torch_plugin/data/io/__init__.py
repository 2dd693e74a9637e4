"""Read and write files of scans and reconstructions: training files (NPZ), workflow folders, products."""
