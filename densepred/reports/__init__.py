"""Pages about runs: what a run left in its folder, as one HTML file that opens anywhere."""
