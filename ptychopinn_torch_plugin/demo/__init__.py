"""The demonstration: a simulated scan, reconstructed by Ptychodus with this package, scored and plotted."""
