"""How strong total variation should be at which dose: objects x doses x seeds x strengths, in one table."""
