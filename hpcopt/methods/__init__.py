"""The methods and their baselines, one file each; what several of them hold is in `parts`."""
