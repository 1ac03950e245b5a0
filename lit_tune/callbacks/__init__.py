"""What watches a run: checkpoints, logs, progress, the verdict, the export."""
