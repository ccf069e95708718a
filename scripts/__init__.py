"""Programs: one for each benchmark."""
