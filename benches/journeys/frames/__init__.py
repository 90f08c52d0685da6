"""How fast the three tiers answer, fill and rank."""
