"""Generation: one engine with a paged cache, a scheduler and a runner behind one facade."""
