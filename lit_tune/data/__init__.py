"""Files and data sets -> rows, rows -> batches."""
