"""What people look at: plots of measurements and plans, one file a plot, written whole or not at all."""
