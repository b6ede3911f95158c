"""Moving bytes: many parts of many objects at once, within a budget, retried. Knows neither torch nor any SDK."""
