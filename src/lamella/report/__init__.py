"""What people look at: plots of measurements and plans, and the rows of tables.

plots    one file a plot, written whole or not at all
tables   plain rows for the command line to lay out
"""
