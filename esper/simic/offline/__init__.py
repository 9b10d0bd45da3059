"""Learning from recorded episodes: behaviour cloning, implicit and conservative Q-learning, and judging them."""
