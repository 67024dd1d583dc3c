"""What one worker does, alone and in order. Knows no dask and no other worker."""
