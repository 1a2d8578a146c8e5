"""How long nobody leads, and what becomes of the ticks meanwhile, when the leader of three nodes comes to harm."""
