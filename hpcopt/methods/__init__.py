"""The methods, one file per paper, and their baselines."""
