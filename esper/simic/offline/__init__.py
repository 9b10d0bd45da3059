"""Learning from recorded episodes: behaviour cloning, implicit Q-learning, conservative Q-learning, and judging them."""
