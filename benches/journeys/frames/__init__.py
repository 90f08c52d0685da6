"""How fast the three tiers answer, are filled and are ranked."""
