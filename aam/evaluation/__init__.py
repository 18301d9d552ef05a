"""Leaves that judge predictions: classical baselines and plots. Imported where an option asks for them."""
