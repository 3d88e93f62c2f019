"""Generated IHC patches and small twins of the ten datasets: nothing here is a real image."""
