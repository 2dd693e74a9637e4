"""The demonstration: a scan simulated on the spot, reconstructed through the real Ptychodus, scored and drawn."""
