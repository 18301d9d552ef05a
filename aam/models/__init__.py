"""Architecture alone. Knows neither the data's files nor the training."""
