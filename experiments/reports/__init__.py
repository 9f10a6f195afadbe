"""Pages that show a run or compare several: HTML files that need nothing else."""
