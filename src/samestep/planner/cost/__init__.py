"""Cost model: the step time of one given plan, from measured or described costs. It chooses nothing."""
