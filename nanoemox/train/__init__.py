"""Training: batches and schedules. The model imports nothing from here."""
