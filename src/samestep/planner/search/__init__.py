"""Search: candidate plans, their ranking, and shares that follow the workers' speeds. It prints nothing."""
