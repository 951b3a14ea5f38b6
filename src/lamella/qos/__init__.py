"""The right variant at every moment (ALCS panels 4 to 7)."""
