"""Files of scans and reconstructions: training files (NPZ), workflow folders, products."""
