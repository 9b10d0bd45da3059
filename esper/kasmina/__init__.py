"""Kasmina: the mechanics of seeds. Hosts with slots, blueprints, the life cycle, and what a slot computes."""
